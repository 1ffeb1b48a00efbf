"""Flow matching: the loss that trains a velocity network and the sampler that integrates it."""
