"""The disk watchdog: what may be deleted, and when. Importing the package imports no jax.

`settings` (roots and limits), `measure` (statvfs), `leases` (what is in use), `scan`, `runs` and `hub` (what may go),
`remove` (how it goes), `pause` (asking the trainer to wait), `watchdog` (a pass over it all).
"""
