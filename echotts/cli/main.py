"""`echotts COMMAND` and the root scripts; only the chosen command is imported."""

import importlib
import sys
from typing import NoReturn

from echotts import __version__
from echotts.cli.app import Main, choose, run


def _command(module: str) -> Main:
    """The main function of `echotts.cli.<module>`, imported when it is called."""

    def call(argv: list[str]) -> int | None:
        return importlib.import_module(f"echotts.cli.{module}").main(argv)

    return call


COMMANDS: dict[str, tuple[str, Main]] = {
    "speak": ("synthesise speech to a file", _command("inference")),
    "train": ("train a model on shards of latents", _command("train")),
    "monitor": ("show a dashboard of one or many runs in a browser", _command("monitor")),
    "watchdog": ("keep this host's disks from filling up", _command("watchdog")),
    "data": ("prepare shards from recordings; inspect shards", _command("data")),
    "codec": ("encode and decode audio; train, evaluate or convert a codec", _command("codec")),
    "voice": ("save and manage voices made from recordings", _command("voice")),
    "plan": ("estimate what a training needs on a TPU slice, without having one", _command("plan")),
    "export": ("write a run's weights to one model.safetensors", _command("export")),
    "eval": ("evaluate a model's speech: word errors and voice similarity", _command("evaluate")),
}


def main(argv: list[str]) -> int:
    """Runs the command named in `argv`; returns the exit code."""
    if argv[:1] == ["--version"]:
        print(f"echotts {__version__}")
        return 0
    return choose("echotts", "Text to speech: training and inference. --version prints the version.", COMMANDS, argv)


def console(*command: str) -> NoReturn:
    """Entry point of the installed command and the root scripts; `command` precedes the arguments."""
    run(main, [*command, *sys.argv[1:]])
