"""Run directories: layout, metrics, leases, free space, and the spool of a run in a bucket. Does not import jax."""
