"""`echotts codec`: audio to latents and back; train, measure, convert a codec."""

from collections.abc import Callable

from echotts.cli.app import choose
from echotts.cli.codec.evaluate import evaluate
from echotts.cli.codec.training import train
from echotts.cli.codec.transcode import compress, decode, decompress, encode
from echotts.cli.codec.weights import convert, info


def main(argv: list[str]) -> int:
    """Run the command that `argv` names; gives the exit code."""
    commands: dict[str, tuple[str, Callable[[list[str]], int]]] = {
        "encode": ("recordings to latents or tokens", encode),
        "decode": ("latents or tokens to recordings", decode),
        "compress": ("recordings to tokens that restore loudness, rate, length and channels", compress),
        "decompress": ("these tokens to recordings", decompress),
        "train": ("train a codec on recordings", train),
        "evaluate": ("measure what a round trip loses", evaluate),
        "convert": ("write a codec as .safetensors, or install it", convert),
        "info": ("say what a codec is", info),
    }
    return choose("echotts codec", "Codecs turn audio into latents or tokens and back.", commands, argv)
