"""How tests compile: quickly, except for golden vectors, which hold for programs as users compile them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax

QUICKLY = "JAX_DISABLE_MOST_OPTIMIZATIONS"  # a third less CPU time for most tests; set by tests/conftest.py


@contextmanager
def as_users_compile() -> Iterator[None]:
    """XLA optimises the programs compiled in this context; also a decorator of tests."""
    jax.clear_caches()
    jax.config.update(QUICKLY.lower(), False)
    try:
        yield
    finally:
        jax.config.update(QUICKLY.lower(), os.environ.get(QUICKLY) == "1")
        jax.clear_caches()
