"""Shards of latents: the format, its reader, the endless stream, batches, and their preparation from recordings."""
