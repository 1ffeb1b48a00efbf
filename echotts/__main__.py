"""`python -m echotts`: the list of commands."""

from echotts.cli.app import run
from echotts.cli.main import main

if __name__ == "__main__":
    run(main)
