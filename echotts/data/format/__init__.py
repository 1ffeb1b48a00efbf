"""The shard format."""
