"""`codec encode` and `codec decode`: recordings to latents and back, a file or a tree of them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from echotts.cli.app import UsageError, parse
from echotts.cli.codec.recordings import progress

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EncodeArguments:
    """Turn recordings into latents: one .npy (frames, channels) of float32 each, 25 frames a second.

    Any rate and number of channels; the loudness is kept unless --loudness is given.
    """

    input: Path
    """A recording (wav, flac, ogg, opus, mp3), or a folder: its tree is mirrored in --output."""
    output: Path
    """The .npy to write, or the folder."""
    codec: str = "demo"
    """A .pth or .safetensors, a folder, a Hub id, or demo, the built-in one."""
    loudness: float | None = None
    """Bring each recording to this loudness first, LUFS (data prepare uses -16)."""
    seed: int | None = None
    """Draw latents from the posterior with this seed; without it they are its mean."""


@dataclass(frozen=True, kw_only=True)
class DecodeArguments:
    """Turn latents into sound."""

    input: Path
    """A .npy (frames, channels), or a folder of them: its tree is mirrored in --output."""
    output: Path
    """The recording to write (.wav, .flac, .ogg, .mp3), or the folder."""
    codec: str = "demo"
    """The codec that made the latents: a .pth or .safetensors, a folder, a Hub id, or demo."""
    watermark: str | None = None
    """A message of 16 bits, such as 1010011100000001, to lay under the audio. None: clean audio."""
    format: Literal["wav", "flac", "ogg", "mp3"] = "wav"
    """Of the files, where --output is a folder."""
    mp3_rate: int = 320
    """Bit rate of an .mp3, kbit/s; below 32 kHz mp3 ends at 160, below 16 kHz at 64."""


def encode(argv: list[str]) -> int:
    """Recordings to latents; gives the exit code."""
    arguments = parse(EncodeArguments, argv, prog="echotts codec encode")
    from echotts.audio import AUDIO_SUFFIXES, loudness_normalise, read_audio

    pairs = _pairs(arguments.input, arguments.output, AUDIO_SUFFIXES, ".npy")
    import jax
    import numpy as np

    from echotts.codec import load_codec
    from echotts.files import atomic_write

    codec = load_codec(arguments.codec)
    key = None if arguments.seed is None else jax.random.key(arguments.seed)

    def encode_one(source: Path, target: Path) -> str:
        audio = read_audio(source, codec.sample_rate)
        if arguments.loudness is not None:
            audio = loudness_normalise(audio, codec.sample_rate, arguments.loudness)
        latent = codec.encode(audio[None], key)[0]
        with atomic_write(target) as temporary, temporary.open("wb") as file:
            np.save(file, latent)
        return f"{target}: {len(latent)} frames of {codec.latent_channels} channels, {_seconds(audio, codec)}"

    return _each(pairs, encode_one, "encode")


def decode(argv: list[str]) -> int:
    """Latents to recordings; gives the exit code."""
    arguments = parse(DecodeArguments, argv, prog="echotts codec decode")
    bits = arguments.watermark
    if bits is not None and (len(bits) != 16 or set(bits) - set("01")):
        raise UsageError(f"--watermark {bits!r} is not 16 bits: give 16 characters 0 or 1")
    pairs = _pairs(arguments.input, arguments.output, (".npy",), f".{arguments.format}")
    import numpy as np

    from echotts.audio import check_mp3_rate, check_suffix, write_audio
    from echotts.codec import load_codec

    check_mp3_rate(arguments.mp3_rate)
    for _, target in pairs:
        check_suffix(target)
    codec = load_codec(arguments.codec)
    message = None if bits is None else np.array([[int(bit) for bit in bits]])

    def decode_one(source: Path, target: Path) -> str:
        audio = codec.decode(_read_latent(source, codec.latent_channels)[None], message)[0]
        write_audio(target, audio, codec.sample_rate, "none", mp3_rate=arguments.mp3_rate)
        return f"{target}: {_seconds(audio, codec)}"

    return _each(pairs, decode_one, "decode")


def _pairs(source: Path, target: Path, suffixes: tuple[str, ...], new_suffix: str) -> list[tuple[Path, Path]]:
    """Which file becomes which: one, or a tree that is mirrored. Each can be written, and is no source."""
    pairs = _matched(source, target, suffixes, new_suffix)
    from echotts.files import check_outputs

    check_outputs([output for _, output in pairs], [source for source, _ in pairs])
    return pairs


def _matched(source: Path, target: Path, suffixes: tuple[str, ...], new_suffix: str) -> list[tuple[Path, Path]]:
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if not source.is_dir():
        return [(source, target / source.with_suffix(new_suffix).name if target.is_dir() else target)]
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes)
    if not files:
        raise FileNotFoundError(f"{source}: no {', '.join(suffixes)} in this folder")
    if target.is_file():
        raise UsageError(f"--output {target} is a file, and --input is a folder: name a folder")
    pairs = [(path, target / path.relative_to(source).with_suffix(new_suffix)) for path in files]
    if len({target for _, target in pairs}) < len(pairs):
        raise ValueError(f"{source}: files that differ in their suffix only would be one in {target}: rename them")
    return pairs


def _each(pairs: list[tuple[Path, Path]], work: Callable[[Path, Path], str], title: str) -> int:
    """Does the work for each pair. A file that fails is said and skipped, unless it is the only one."""
    if len(pairs) == 1:
        print(work(*pairs[0]))
        return 0
    failures = 0
    for source, target in progress(pairs, title, len(pairs)):
        try:
            line = work(source, target)
        except (ValueError, FileNotFoundError) as error:
            failures += 1
            LOGGER.warning("skipped: %s", error)
        else:
            LOGGER.debug("%s", line)
    print(f"{len(pairs) - failures} of {len(pairs)} files, {failures} skipped")
    return 1 if failures else 0


def _read_latent(path: Path, channels: int) -> Any:
    import numpy as np

    try:
        latent = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as latents (.npy of numbers): encode the recording again") from error
    if not isinstance(latent, np.ndarray) or latent.dtype.kind != "f" or latent.ndim != 2 or not len(latent):
        raise ValueError(f"{path}: no array (frames, channels) of floats")
    if latent.shape[1] != channels:
        raise ValueError(f"{path}: latents have {latent.shape[1]} channels, the codec makes {channels}")
    return latent.astype(np.float32)


def _seconds(audio: Any, codec: Any) -> str:
    return f"{len(audio) / codec.sample_rate:.2f} s"
