"""`codec encode`, `decode`, `compress` and `decompress`: recordings to tokens and back, single files or trees."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from echotts.cli.app import UsageError, parse
from echotts.cli.codec.batch import pairs_of, run_pairs, share_of, with_flags
from echotts.codec.location import locate_codec
from echotts.codec.tokens import TOKEN_SUFFIXES, check_token_path, load_encoded, save_encoded
from echotts.config import DEFAULT_CODEC

if TYPE_CHECKING:
    from echotts.codec import Codec

Report = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    input: Path
    """A file, or a folder whose tree is mirrored in --output. May be given first, without the flag."""
    output: Path
    """The file or folder to write. May be given second, without the flag."""
    codec: str = DEFAULT_CODEC
    """A .pth or .safetensors, a folder, a Hub id (descript/dac_44khz), demo (built in), or a run directory."""
    n_quantizers: int | None = None
    """Use only the first so many codebooks of DAC. None: all."""
    shard: str = "0/1"
    """I/N: process every Nth file of a folder from the Ith on, so that N processes can share a folder."""
    jobs: int | None = None
    """Files of a folder processed at once. None: one per device."""
    resume: bool = False
    """Skip files of a folder whose outputs exist."""


@dataclass(frozen=True, kw_only=True)
class EncodeArguments(_Arguments):
    """Turn recordings into latents or tokens. Any rate and number of channels; loudness is kept unless given.

    .npy has the latents (frames, channels) of the mean over the recording's channels, as float32. .npz, .safetensors
    and .dac (DAC only) have DAC codes or DACVAE latents for each channel, and what is needed to restore the recording;
    these formats accept recordings of any length.
    """

    loudness: float | None = None
    """Normalise each recording to this loudness first, LUFS (data prepare uses -16)."""
    seed: int | None = None
    """Sample latents from the posterior with this seed (.npy of DACVAE). None: the posterior mean."""
    format: Literal["npy", "npz", "safetensors", "dac"] = "npy"
    """File format if --output is a folder."""


@dataclass(frozen=True, kw_only=True)
class DecodeArguments(_Arguments):
    """Turn latents or tokens (.npy, .npz, .safetensors, .dac) into audio at the codec's rate and their own level."""

    watermark: str | None = None
    """A 16-bit message, such as 1010011100000001, to embed in the audio. None: clean audio."""
    format: Literal["wav", "flac", "ogg", "mp3"] = "wav"
    """File format if --output is a folder."""
    mp3_rate: int = 320
    """Bit rate of an .mp3, kbit/s; at most 160 below 32 kHz and 64 below 16 kHz."""


@dataclass(frozen=True, kw_only=True)
class CompressArguments(_Arguments):
    """Turn recordings into tokens from which decompress restores their loudness, rate, length and channels."""

    loudness: float = -16.0
    """Loudness to which recordings are normalised before encoding, LUFS."""
    format: Literal["npz", "safetensors", "dac"] = "npz"
    """File format if --output is a folder. dac is for DAC only, and readable by descript-audio-codec."""


@dataclass(frozen=True, kw_only=True)
class DecompressArguments(_Arguments):
    """Restore recordings from tokens (.npz, .safetensors, .dac), with loudness, rate, length and channels."""

    format: Literal["wav", "flac", "ogg", "mp3"] = "flac"
    """File format if --output is a folder."""
    mp3_rate: int = 320
    """Bit rate of an .mp3, kbit/s; at most 160 below 32 kHz and 64 below 16 kHz."""


def encode(argv: list[str]) -> int:
    """Recordings to latents or tokens; returns the exit code."""
    arguments = parse(EncodeArguments, with_flags(argv), prog="echotts codec encode")

    def work(codec: "Codec", source: Path, target: Path, report: Report) -> str:
        if target.suffix in TOKEN_SUFFIXES:
            return _tokens_to_file(codec, source, target, arguments.n_quantizers, arguments.loudness, report)
        return _latents_to_file(codec, source, target, arguments)

    return _recordings(arguments, work, "encode")


def compress(argv: list[str]) -> int:
    """Recordings to tokens that restore them; returns the exit code."""
    arguments = parse(CompressArguments, with_flags(argv), prog="echotts codec compress")

    def work(codec: "Codec", source: Path, target: Path, report: Report) -> str:
        return _tokens_to_file(codec, source, target, arguments.n_quantizers, arguments.loudness, report)

    return _recordings(arguments, work, "compress")


def decode(argv: list[str]) -> int:
    """Latents or tokens to recordings; returns the exit code."""
    arguments = parse(DecodeArguments, with_flags(argv), prog="echotts codec decode")
    bits = arguments.watermark
    if bits is not None and (len(bits) != 16 or set(bits) - set("01")):
        raise UsageError(f"--watermark {bits!r} is not 16 bits: give 16 characters, 0 or 1")
    import numpy as np

    from echotts.audio import check_mp3_rate, write_audio
    from echotts.codec.sound import write_sound

    check_mp3_rate(arguments.mp3_rate)
    message = None if bits is None else np.array([int(bit) for bit in bits])

    def work(codec: "Codec", source: Path, target: Path, report: Report) -> str:
        if source.suffix in TOKEN_SUFFIXES:
            encoded = codec.read_tokens(source)
            blocks = _reported(codec.decoded_blocks(encoded, arguments.n_quantizers, message), codec, report)
            samples = write_sound(target, blocks, codec.sample_rate, len(encoded.tokens), mp3_rate=arguments.mp3_rate)
        else:
            latent = _read_latent(source, codec.latent_channels)[None]
            audio = codec.decode(latent, None if message is None else message[None])[0]
            write_audio(target, audio, codec.sample_rate, "none", mp3_rate=arguments.mp3_rate)
            samples = len(audio)
        return f"{target}: {samples / codec.sample_rate:.2f} s"

    return _tokens(arguments, work, "decode", (".npy", *TOKEN_SUFFIXES))


def decompress(argv: list[str]) -> int:
    """Restores recordings from tokens; returns the exit code."""
    arguments = parse(DecompressArguments, with_flags(argv), prog="echotts codec decompress")
    from echotts.audio import check_mp3_rate

    check_mp3_rate(arguments.mp3_rate)

    def work(codec: "Codec", source: Path, target: Path, report: Report) -> str:
        encoded = codec.read_tokens(source)
        samples = codec.decompress_to_file(encoded, target, arguments.n_quantizers, report, arguments.mp3_rate)
        rate, channels = encoded.sample_rate or codec.sample_rate, len(encoded.tokens)
        return f"{target}: {samples / rate:.2f} s, {rate} Hz, {channels} channels"

    return _tokens(arguments, work, "decompress", TOKEN_SUFFIXES)


def _recordings(arguments: Any, work: Any, title: str) -> int:
    """Processes recordings, after checking the outputs."""
    from echotts.audio import AUDIO_SUFFIXES

    pairs = pairs_of(arguments.input, arguments.output, AUDIO_SUFFIXES, f".{arguments.format}")
    allowed = (".npy", *TOKEN_SUFFIXES) if title == "encode" else TOKEN_SUFFIXES
    if pairs[0][1].suffix not in allowed:
        raise UsageError(f"--output {pairs[0][1]}: {title} can write {', '.join(allowed)}")
    locate_codec(arguments.codec)
    from echotts.codec import load_codec
    from echotts.codec.sound import SoundFile

    codec = load_codec(arguments.codec)
    codec.check_quantizers(arguments.n_quantizers)
    if pairs[0][1].suffix in TOKEN_SUFFIXES:
        check_token_path(pairs[0][1], codec.config.quantized)
    seconds = 0.0
    if len(pairs) == 1:
        sound = SoundFile(pairs[0][0])
        seconds = (sound.samples or 0) / sound.sample_rate
    pairs = share_of(pairs, arguments.shard, arguments.resume)
    return run_pairs(codec, pairs, work, title, arguments.jobs, seconds)


def _tokens(arguments: Any, work: Any, title: str, suffixes: tuple[str, ...]) -> int:
    """Processes token files, after checking the outputs."""
    pairs = pairs_of(arguments.input, arguments.output, suffixes, f".{arguments.format}")
    from echotts.audio import check_suffix

    for _, target in pairs:
        check_suffix(target)
    locate_codec(arguments.codec)
    from echotts.codec import load_codec

    codec = load_codec(arguments.codec)
    seconds = 0.0
    if len(pairs) == 1 and pairs[0][0].suffix in TOKEN_SUFFIXES:
        seconds = load_encoded(pairs[0][0]).frames * codec.hop_length / codec.sample_rate
    pairs = share_of(pairs, arguments.shard, arguments.resume)
    return run_pairs(codec, pairs, work, title, arguments.jobs, seconds)


def _tokens_to_file(
    codec: "Codec", source: Path, target: Path, n_quantizers: int | None, loudness: float | None, report: Report
) -> str:
    encoded = codec.compress(source, n_quantizers, loudness, report)
    save_encoded(target, encoded)
    channels = len(encoded.tokens)
    what = f"{encoded.tokens.shape[1]} codebooks" if encoded.are_codes else f"{codec.latent_channels} values"
    seconds = encoded.frames * codec.hop_length / codec.sample_rate
    return f"{target}: {encoded.frames} frames of {what}, {channels} channels, {seconds:.2f} s"


def _latents_to_file(codec: "Codec", source: Path, target: Path, arguments: EncodeArguments) -> str:
    import jax
    import numpy as np

    from echotts.audio import loudness_normalise, read_audio
    from echotts.files import atomic_write

    audio = read_audio(source, codec.sample_rate)
    if arguments.loudness is not None:
        audio = loudness_normalise(audio, codec.sample_rate, arguments.loudness)
    key = None if arguments.seed is None else jax.random.key(arguments.seed)
    latent = codec.encode(audio[None], key, n_quantizers=arguments.n_quantizers)[0]
    with atomic_write(target) as temporary, temporary.open("wb") as file:
        np.save(file, latent)
    seconds = len(audio) / codec.sample_rate
    return f"{target}: {len(latent)} frames of {codec.latent_channels} channels, {seconds:.2f} s"


def _reported(blocks: Any, codec: "Codec", report: Report) -> Any:
    for block in blocks:
        report(block.shape[1] / codec.sample_rate)
        yield block


def _read_latent(path: Path, channels: int) -> Any:
    import tokenize

    import numpy as np

    try:
        latent = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: no header claims more than the file has
    except (ValueError, EOFError, TypeError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{path}: cannot be read as latents (.npy of numbers): encode the recording again") from error
    if not isinstance(latent, np.ndarray) or latent.dtype.kind != "f" or latent.ndim != 2 or not len(latent):
        raise ValueError(f"{path}: not an array (frames, channels) of floats")
    if latent.shape[1] != channels:
        raise ValueError(f"{path}: latents have {latent.shape[1]} channels, the codec has {channels}")
    return latent.astype(np.float32)
