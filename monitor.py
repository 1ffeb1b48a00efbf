"""Shows runs in a browser: same as `echotts monitor`."""

from echotts.cli.main import console

if __name__ == "__main__":
    console("monitor")
