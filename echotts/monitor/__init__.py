"""The dashboard: reads run directories and serves a page. Does not import jax and never writes to a run."""
