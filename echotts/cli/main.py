"""`python -m echotts COMMAND`: the list of commands; only the chosen one is imported."""

import importlib

from echotts.cli.app import Main, choose


def _command(module: str) -> Main:
    """The main of `echotts.cli.<module>`, imported when it is called."""

    def call(argv: list[str]) -> int | None:
        return importlib.import_module(f"echotts.cli.{module}").main(argv)

    return call


COMMANDS: dict[str, tuple[str, Main]] = {
    "codec": ("audio to latents and back; train, measure, convert a codec", _command("codec")),
    "data": ("recordings to shards; look into shards", _command("data")),
    "plan": ("what a training needs on a TPU slice, without one", _command("plan")),
    "export": ("a run's weights as one model.safetensors", _command("export")),
    "eval": ("measure how well a model speaks: word errors and voice match", _command("evaluate")),
}


def main(argv: list[str]) -> int:
    """Run the command that `argv` names; gives the exit code."""
    description = "Text to speech. Training is train_pretrain.py, speaking is inference.py; this is the rest."
    return choose("python -m echotts", description, COMMANDS, argv)
