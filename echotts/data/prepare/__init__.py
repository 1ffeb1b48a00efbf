"""Recordings to shards."""
