"""Watch runs in a browser: `python monitor.py --run_dir runs/demo --port 8080`."""

from echotts.cli.app import run
from echotts.cli.monitor import main

if __name__ == "__main__":
    run(main)
