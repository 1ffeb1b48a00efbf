"""Training of DACVAE and DAC codecs: losses, discriminators, crops, and the training loop with its run directories."""
