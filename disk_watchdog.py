"""Keeps the disks of this host from filling: same as `echotts watchdog`."""

from echotts.cli.main import console

if __name__ == "__main__":
    console("watchdog")
