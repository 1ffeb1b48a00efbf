"""The disk watchdog: what may be deleted, and when. Importing the package imports no jax.

`settings` (roots and limits), `tree` (walking folders), `scan`, `runs`, `hub` and `logs` (candidates for deletion),
`remove` (deletion), `watchdog` (a pass over all roots), `journal` (its lines in a run's metrics).
"""
