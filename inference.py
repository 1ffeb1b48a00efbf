"""Speak a text: `python inference.py --text "seven three one nine" --output out.wav`."""

from echotts.cli.app import run
from echotts.cli.inference import main

if __name__ == "__main__":
    run(main)
