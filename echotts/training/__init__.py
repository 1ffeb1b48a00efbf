"""Pretraining: mesh, state, step, loop, reports, samples; planning for TPU slices. Importing it does not import jax."""
