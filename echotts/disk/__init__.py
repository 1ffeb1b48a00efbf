"""The disk watchdog: what may be deleted, and when. Importing the package does not import jax.

`settings` (roots and limits), `tree` (walking folders), `scan`, `runs`, `hub` and `logs` (candidates for deletion),
`remove` (deletion), `watchdog` (a pass over all roots), `journal` (the watchdog's lines in a run's metrics).
"""
