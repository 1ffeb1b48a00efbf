"""Keep this host's disks from filling: `python disk_watchdog.py --config watchdog.toml`."""

from echotts.cli.app import run
from echotts.cli.watchdog import main

if __name__ == "__main__":
    run(main)
