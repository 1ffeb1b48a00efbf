"""Checkpoints and weights files: save, restore, agreement of a resumed run, export, published pickles."""
