"""The order of samples: a deterministic, endless stream of batches."""
