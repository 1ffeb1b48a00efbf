"""`echotts codec`: encode, decode, train, evaluate, convert. Only the chosen command is imported."""

import importlib

from echotts.cli.app import Main, choose


def _command(module: str, name: str) -> Main:
    """A function of `echotts.cli.codec.<module>`, imported when it is called: `--help` must not wait for jax."""

    def run(argv: list[str]) -> int:
        return getattr(importlib.import_module(f"echotts.cli.codec.{module}"), name)(argv)

    return run


def main(argv: list[str]) -> int:
    """Runs the command named in `argv`; returns the exit code."""
    commands: dict[str, tuple[str, Main]] = {
        "encode": ("turn recordings into latents or tokens", _command("transcode", "encode")),
        "decode": ("turn latents or tokens into recordings", _command("transcode", "decode")),
        "compress": (
            "turn recordings into tokens that keep loudness, rate, length and channels",
            _command("transcode", "compress"),
        ),
        "decompress": ("restore recordings from such tokens", _command("transcode", "decompress")),
        "train": ("train a codec on recordings", _command("training", "train")),
        "evaluate": ("measure the quality of a round trip", _command("evaluate", "evaluate")),
        "convert": ("write a codec as .safetensors, or install it", _command("weights", "convert")),
        "detect": ("find the watermark of speech in recordings", _command("detect", "detect")),
        "info": ("describe a codec", _command("weights", "info")),
    }
    return choose("echotts codec", "Codecs turn audio into latents or tokens and back.", commands, argv)
