"""Show runs in a browser: the same as `echotts monitor`."""

from echotts.cli.main import console

if __name__ == "__main__":
    console("monitor")
