"""Sources of shards: local files, the Hub, HTTP, object stores; and the cache of downloaded shards."""
