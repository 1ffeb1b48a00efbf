"""Speaks a text into a file: same as `echotts speak`."""

from echotts.cli.main import console

if __name__ == "__main__":
    console("speak")
