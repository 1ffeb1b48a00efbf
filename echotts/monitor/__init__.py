"""The dashboard: reads run directories, serves a page. Imports no jax, writes nothing into a run."""
