"""Pretraining: mesh, state, step, loop, checkpoints, metrics. Importing the package itself imports no jax."""
