"""`echotts codec`: audio to latents and back; train, measure, convert a codec. Only the chosen command is imported."""

import importlib

from echotts.cli.app import Main, choose


def _command(module: str, name: str) -> Main:
    """A function of `echotts.cli.codec.<module>`, imported when it is called: `--help` must not wait for jax."""

    def run(argv: list[str]) -> int:
        return getattr(importlib.import_module(f"echotts.cli.codec.{module}"), name)(argv)

    return run


def main(argv: list[str]) -> int:
    """Run the command that `argv` names; gives the exit code."""
    commands: dict[str, tuple[str, Main]] = {
        "encode": ("recordings to latents or tokens", _command("transcode", "encode")),
        "decode": ("latents or tokens to recordings", _command("transcode", "decode")),
        "compress": (
            "recordings to tokens that restore loudness, rate, length and channels",
            _command("transcode", "compress"),
        ),
        "decompress": ("these tokens to recordings", _command("transcode", "decompress")),
        "train": ("train a codec on recordings", _command("training", "train")),
        "evaluate": ("measure what a round trip loses", _command("evaluate", "evaluate")),
        "convert": ("write a codec as .safetensors, or install it", _command("weights", "convert")),
        "info": ("say what a codec is", _command("weights", "info")),
    }
    return choose("echotts codec", "Codecs turn audio into latents or tokens and back.", commands, argv)
