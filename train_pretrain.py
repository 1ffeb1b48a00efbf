"""Trains a model: same as `echotts train`."""

from echotts.cli.main import console

if __name__ == "__main__":
    console("train")
