"""Where shards come from."""
