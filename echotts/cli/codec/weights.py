"""`codec convert` and `info`: converts and describes codec weights."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli.app import UsageError, parse
from echotts.config import DEFAULT_CODEC


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """Write a codec as .safetensors (weight norm folded, sizes in the header) or as .pth in the published layout."""

    input: str
    """The codec: a published .pth, a .safetensors, a folder, a Hub id, or a codec training's run directory."""
    output: Path | None = None
    """The .safetensors or .pth to write."""
    install: bool = False
    """Install in the local cache, where inference finds it by the hash of its weights."""
    id: str | None = None
    """The id by which checkpoints refer to it. None: the codec's current one."""
    dtype: Literal["float32", "float16"] = "float32"
    """Storage type of a .safetensors. float16 halves the file but changes the weights and their hash."""


@dataclass(frozen=True, kw_only=True)
class InfoArguments:
    """Describe a codec."""

    codec: str = DEFAULT_CODEC
    """A .pth or .safetensors, a folder, a Hub id, a built-in one (demo), or a codec training's run directory."""


def convert(argv: list[str]) -> int:
    """Writes a codec to another file, or installs it; returns the exit code."""
    arguments = parse(ConvertArguments, argv, prog="echotts codec convert")
    if arguments.output is None and not arguments.install:
        raise UsageError("nothing to write: give --output FILE.safetensors, --install, or both")
    if arguments.output is not None and arguments.output.suffix not in (".safetensors", ".pth"):
        raise UsageError(f"--output {arguments.output} must be a .safetensors or .pth")
    from echotts.codec.location import locate_codec

    locate_codec(arguments.input)
    from echotts.codec import load_codec, save_codec
    from echotts.codec.publish import write_published
    from echotts.codec.registry import cache_folder
    from echotts.files import check_outputs

    check_outputs(filter(None, [arguments.output]), [arguments.input])
    codec = load_codec(arguments.input)
    name = arguments.id or codec.codec_id
    if arguments.output is not None:
        if arguments.output.suffix == ".pth":
            write_published(arguments.output, codec.params, codec.config)
        else:
            save_codec(arguments.output, codec.params, codec.config, name, arguments.dtype)
        written = load_codec(arguments.output)
        print(f"{arguments.output}: codec {name}, weights {written.weights_hash}")
    if arguments.install:
        path = cache_folder() / f"{codec.weights_hash}.safetensors"
        save_codec(path, codec.params, codec.config, name)
        print(f"{path}: codec {name} is installed")
    return 0


def info(argv: list[str]) -> int:
    """Prints a description of a codec; returns the exit code."""
    arguments = parse(InfoArguments, argv, prog="echotts codec info")
    from echotts.codec.location import locate_codec

    locate_codec(arguments.codec)
    import jax

    from echotts.codec import load_codec

    codec = load_codec(arguments.codec)
    sizes = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in codec.params.items()}
    config = codec.config
    print(f"codec          {codec.codec_id}")
    print(f"weights        {codec.weights_hash}")
    print(f"sample rate    {codec.sample_rate} Hz")
    print(f"hop            {codec.hop_length} samples, {codec.sample_rate / codec.hop_length:g} frames/s")
    print(f"latents        {codec.latent_channels} channels")
    if config.quantized:
        kbps = config.n_codebooks * math.log2(config.codebook_size) * codec.sample_rate / codec.hop_length / 1000
        print(f"codebooks      {config.n_codebooks} of {config.codebook_size} vectors, {kbps:.2f} kbit/s")
    print(f"encoder        {config.encoder_dim} channels, rates {config.encoder_rates}")
    print(f"decoder        {config.decoder_dim} channels, rates {config.decoder_rates}")
    print(f"parameters     {', '.join(f'{part} {count:,}' for part, count in sizes.items())}")
    print(f"watermark      {'16 bits' if codec.has_watermark else 'none'}")
    return 0
