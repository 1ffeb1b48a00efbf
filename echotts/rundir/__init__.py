"""A run directory: its layout, metrics, leases, free space and the spool of a run in a bucket. Imports no jax."""
