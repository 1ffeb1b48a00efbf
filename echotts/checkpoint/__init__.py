"""Checkpoints and weights files: saving, restoring, compatibility of a resumed run, export, published pickles."""
