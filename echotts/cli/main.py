"""`echotts COMMAND`, `echotts COMMAND` and the root scripts: only the chosen command is imported."""

import importlib
import sys
from typing import NoReturn

from echotts import __version__
from echotts.cli.app import Main, choose, run


def _command(module: str) -> Main:
    """The main of `echotts.cli.<module>`, imported when it is called."""

    def call(argv: list[str]) -> int | None:
        return importlib.import_module(f"echotts.cli.{module}").main(argv)

    return call


COMMANDS: dict[str, tuple[str, Main]] = {
    "speak": ("text to speech, into a file", _command("inference")),
    "train": ("train a model from shards of latents", _command("train")),
    "monitor": ("the dashboard of one or many runs, in a browser", _command("monitor")),
    "watchdog": ("keep this host's disks from filling", _command("watchdog")),
    "data": ("recordings to shards; inspect shards", _command("data")),
    "codec": ("audio to latents and back; train, evaluate, convert a codec", _command("codec")),
    "voice": ("voices made of recordings, saved under a name", _command("voice")),
    "plan": ("what a training needs on a TPU slice, without one", _command("plan")),
    "export": ("a run's weights as one model.safetensors", _command("export")),
    "eval": ("measure how well a model speaks: word errors and voice match", _command("evaluate")),
}


def main(argv: list[str]) -> int:
    """Run the command that `argv` names; returns the exit code."""
    if argv[:1] == ["--version"]:
        print(f"echotts {__version__}")
        return 0
    return choose("echotts", "Text to speech: train it, listen to it. --version prints the version.", COMMANDS, argv)


def console(*command: str) -> NoReturn:
    """What the installed command and the root scripts call; `command` comes before the arguments of the call."""
    run(main, [*command, *sys.argv[1:]])
