"""Text processing: token ids, sentences, spelled-out numbers."""
