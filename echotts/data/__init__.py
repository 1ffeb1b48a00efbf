"""Training data: the shard format and its reader, remote shards, the sample stream, preparation from recordings."""
