"""Text: token ids, sentences, numbers in words."""
