"""Cuts raw recordings into clips with transcripts to train on; the implementation of `echotts data segment`."""
