"""Raw recordings cut into clips with their texts, to train on: what `echotts data segment` does."""
