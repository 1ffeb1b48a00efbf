"""The fixtures of every test that trains the tiny model."""

from tests.tiny_training import compile_once, shards, trace_once, uninterrupted

__all__ = ["compile_once", "shards", "trace_once", "uninterrupted"]
