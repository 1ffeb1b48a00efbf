"""Preparation of shards from recordings."""
