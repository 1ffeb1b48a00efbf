"""Evaluation of speech synthesis: word errors by a speech recogniser, and similarity of voices."""
