"""`python -m echotts codec`: audio to latents and back; train, measure, convert a codec."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from echotts.cli.app import UsageError, choose, parse

if TYPE_CHECKING:
    from echotts.codec import CodecConfig

PROG = "python -m echotts codec"
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")

Item = TypeVar("Item")
log = logging.getLogger(__name__)


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


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Train a DACVAE on recordings with reconstruction losses. The same command again resumes from --run_dir.

    The defaults are those of the built-in codec.
    """

    data: str
    """Recordings: a folder, a table (csv, jsonl), or audio shards (.tar)."""
    run_dir: Path
    """Folder of the training's state."""
    output: Path
    """The .safetensors to write at the end; its stem is the codec's id."""
    steps: int = 10000
    """Optimizer steps in all."""
    batch_size: int = 4
    """Crops a step."""
    frames: int = 32
    """Length of a crop, latent frames."""
    learning_rate: float = 8e-4
    """Constant after warm-up, then a cosine to zero."""
    kl_weight: float = 2e-4
    """Of the divergence of the posterior from the unit normal."""
    wave_weight: float = 10.0
    """Of the waveform's L1; less lets the decoder choose phases and keep the upper bands' energy."""
    init_from: str | None = None
    """Begin with the weights of this codec, and its sizes: a .pth or .safetensors, a folder, a Hub id, or demo."""
    decoder_only: bool = False
    """Leave all that makes latents as it is: shards and models made with --init_from stay valid."""
    seed: int = 0
    """Of the first weights, the crops and the posterior's noise."""
    loudness: float = -16.0
    """To which every recording is brought, LUFS."""
    sample_rate: int = 16000
    """Hz."""
    encoder_dim: int = 16
    """Channels of the encoder's first layer; each rate doubles them."""
    encoder_rates: tuple[int, ...] = (4, 4, 5, 8)
    """Down-sampling of each block; their product is the hop."""
    latent_dim: int = 256
    """Channels between the networks and the bottleneck."""
    decoder_dim: int = 256
    """Channels of the decoder's first layer; each rate halves them."""
    codebook_dim: int = 64
    """Channels of a latent."""
    dtype: Literal["float32", "float16"] = "float16"
    """How --output stores each number."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Measure what the codec loses: recordings against themselves after encoding and decoding."""

    data: str
    """Recordings: a folder, a table (csv, jsonl), or audio shards (.tar)."""
    codec: str = "demo"
    """A .pth or .safetensors, a folder, a Hub id, or demo."""
    limit: int = 100
    """The first so many clips."""
    loudness: float = -16.0
    """To which every recording is brought, LUFS."""


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """Write a codec as .safetensors, weight norm folded, sizes in the header."""

    input: str
    """The codec: a published .pth, a .safetensors, a folder or a Hub id."""
    output: Path | None = None
    """The .safetensors to write."""
    install: bool = False
    """Put it in the local cache, where inference finds it by the hash of its weights."""
    id: str | None = None
    """The name by which checkpoints refer to it; without it, the codec keeps the one it has."""
    dtype: Literal["float32", "float16"] = "float32"
    """How each number is stored. float16 halves the file, and gives other weights and another hash."""


@dataclass(frozen=True, kw_only=True)
class InfoArguments:
    """Say what a codec is."""

    codec: str = "demo"
    """A .pth or .safetensors, a folder, a Hub id, or demo."""


def main(argv: list[str]) -> int:
    """Run the command that `argv` names; gives the exit code."""
    commands: dict[str, tuple[str, Callable[[list[str]], int]]] = {
        "encode": ("recordings to latents", _encode),
        "decode": ("latents to recordings", _decode),
        "train": ("train a codec on recordings", _train),
        "evaluate": ("measure what a round trip loses", _evaluate),
        "convert": ("write a codec as .safetensors, or install it", _convert),
        "info": ("say what a codec is", _info),
    }
    return choose(PROG, "Codecs turn audio into latents, 25 frames a second, and back.", commands, argv)


def _encode(argv: list[str]) -> int:
    arguments = parse(EncodeArguments, argv, prog=f"{PROG} encode")
    pairs = _pairs(arguments.input, arguments.output, AUDIO_SUFFIXES, ".npy")
    import jax
    import numpy as np

    from echotts.audio import check_place, loudness_normalise, read_audio
    from echotts.codec import load_codec
    from echotts.files import atomic_write

    codec = load_codec(arguments.codec)
    key = None if arguments.seed is None else jax.random.key(arguments.seed)

    def encode(source: Path, target: Path) -> str:
        check_place(target)
        audio = read_audio(source, codec.sample_rate)
        if arguments.loudness is not None:
            audio = loudness_normalise(audio, codec.sample_rate, arguments.loudness)
        latent = codec.encode(audio[None], key)[0]
        with atomic_write(target) as temporary, temporary.open("wb") as file:
            np.save(file, latent)
        return f"{target}: {len(latent)} frames of {codec.latent_channels} channels, {_seconds(audio, codec)}"

    return _each(pairs, encode, "encode")


def _decode(argv: list[str]) -> int:
    arguments = parse(DecodeArguments, argv, prog=f"{PROG} decode")
    bits = arguments.watermark
    if bits is not None and (len(bits) != 16 or set(bits) - set("01")):
        raise UsageError(f"--watermark {bits!r} is not 16 bits: give 16 characters 0 or 1")
    pairs = _pairs(arguments.input, arguments.output, (".npy",), f".{arguments.format}")
    import numpy as np

    from echotts.audio import check_output, write_audio
    from echotts.codec import load_codec

    codec = load_codec(arguments.codec)
    message = None if bits is None else np.array([[int(bit) for bit in bits]])

    def decode(source: Path, target: Path) -> str:
        check_output(target)
        audio = codec.decode(_read_latent(source, codec.latent_channels)[None], message)[0]
        write_audio(target, audio, codec.sample_rate, "none")
        return f"{target}: {_seconds(audio, codec)}"

    return _each(pairs, decode, "decode")


def _train(argv: list[str]) -> int:
    arguments = parse(TrainArguments, argv, prog=f"{PROG} train")
    from echotts.audio import check_place
    from echotts.codec import load_codec, save_codec
    from echotts.codec.training import CodecTraining, train_codec

    base = load_codec(arguments.init_from) if arguments.init_from is not None else None
    config = base.config if base is not None else _new_codec(arguments)
    training = CodecTraining(
        codec=config,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        frames=arguments.frames,
        learning_rate=arguments.learning_rate,
        kl_weight=arguments.kl_weight,
        wave_weight=arguments.wave_weight,
        decoder_only=arguments.decoder_only,
        seed=arguments.seed,
    )
    check_place(arguments.output)
    clips = [
        (clip * 32767).astype("int16")
        for _, clip in _clips(arguments.data, config.sample_rate, arguments.loudness, "read")
    ]
    hours = sum(map(len, clips)) / config.sample_rate / 3600
    print(f"{len(clips)} clips, {hours:.2f} h at {config.sample_rate} Hz", flush=True)
    start = base.params if base is not None else None
    params = train_codec(training, clips, arguments.run_dir, _print_step(training.steps), start)
    save_codec(arguments.output, params, config, arguments.output.stem, arguments.dtype)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB")
    return 0


def _new_codec(arguments: TrainArguments) -> "CodecConfig":
    from echotts.codec import CodecConfig

    rates = tuple(arguments.encoder_rates)
    return CodecConfig(
        encoder_dim=arguments.encoder_dim,
        encoder_rates=rates,
        latent_dim=arguments.latent_dim,
        decoder_dim=arguments.decoder_dim,
        decoder_rates=rates[::-1],
        codebook_dim=arguments.codebook_dim,
        sample_rate=arguments.sample_rate,
    )


def _print_step(steps: int) -> Callable[[dict[str, Any]], None]:
    from echotts.training.progress import duration

    def show(row: dict[str, Any]) -> None:
        losses = ", ".join(f"{name[5:]} {value:.4f}" for name, value in row.items() if name.startswith("loss/"))
        rate, left = row["time/steps_per_s"], duration(row["time/left_s"])
        print(f"step {row['step']:.0f}/{steps}: {losses}, {rate:.2f} steps/s, {left} left", flush=True)

    return show


def _evaluate(argv: list[str]) -> int:
    arguments = parse(EvaluateArguments, argv, prog=f"{PROG} evaluate")
    from echotts.codec import load_codec
    from echotts.codec.evaluation import round_trip, summarise

    codec = load_codec(arguments.codec)
    codec.decode(codec.silence_latent(1)[None])  # compiles, so that the speed below is the codec's
    clips = _clips(arguments.data, codec.sample_rate, arguments.loudness, "evaluate", arguments.limit)
    summary = summarise(round_trip(codec, clip) for _, clip in clips)
    print(f"codec                  {codec.codec_id}, weights {codec.weights_hash[:12]}")
    print(f"clips                  {summary['clips']:.0f}, {summary['seconds']:.1f} s")
    print(f"mel distance           {summary['mel_distance']:.4f} (mean |difference| of log10 mel; 0 is equal)")
    print(f"spectral convergence   {summary['spectral_convergence']:.4f} (0 is equal, 1 is silence)")
    print(f"SI-SDR                 {summary['si_sdr_db']:.2f} dB")
    print(f"speed                  encode {summary['encode_per_s']:.1f}, decode {summary['decode_per_s']:.1f} s per s")
    return 0


def _convert(argv: list[str]) -> int:
    arguments = parse(ConvertArguments, argv, prog=f"{PROG} convert")
    if arguments.output is None and not arguments.install:
        raise UsageError("nothing to write: give --output FILE.safetensors, --install, or both")
    if arguments.output is not None and arguments.output.suffix != ".safetensors":
        raise UsageError(f"--output {arguments.output}: only .safetensors is written")
    from echotts.codec import load_codec, save_codec
    from echotts.codec.registry import cache_folder

    codec = load_codec(arguments.input)
    name = arguments.id or codec.codec_id
    if arguments.output is not None:
        save_codec(arguments.output, codec.params, codec.config, name, arguments.dtype)
        written = load_codec(arguments.output)
        print(f"{arguments.output}: codec {name}, weights {written.weights_hash}")
    if arguments.install:
        path = cache_folder() / f"{codec.weights_hash}.safetensors"
        save_codec(path, codec.params, codec.config, name)
        print(f"{path}: codec {name} is installed")
    return 0


def _info(argv: list[str]) -> int:
    arguments = parse(InfoArguments, argv, prog=f"{PROG} info")
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
    print(f"encoder        {config.encoder_dim} channels, rates {config.encoder_rates}")
    print(f"decoder        {config.decoder_dim} channels, rates {config.decoder_rates}")
    print(f"parameters     {', '.join(f'{part} {count:,}' for part, count in sizes.items())}")
    print(f"watermark      {'16 bits' if codec.has_watermark else 'none'}")
    return 0


def _pairs(source: Path, target: Path, suffixes: tuple[str, ...], new_suffix: str) -> list[tuple[Path, Path]]:
    """Which file becomes which: one, or a tree that is mirrored."""
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if source.is_file():
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
    for source, target in _progress(pairs, title, len(pairs)):
        try:
            line = work(source, target)
        except (ValueError, FileNotFoundError) as error:
            failures += 1
            log.warning("skipped: %s", error)
        else:
            log.debug("%s", line)
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


def _clips(
    data: str, sample_rate: int, loudness: float, title: str, limit: int | None = None
) -> Iterator[tuple[str, Any]]:
    """Names and normalised clips of a source of recordings; one that cannot be read is said and skipped."""
    from echotts.audio import loudness_normalise
    from echotts.data.recordings import Recording, RecordingReader, list_recordings
    from echotts.data.rejections import Rejected

    # texts are not needed here: a folder of nothing but sound is a source too
    files = sorted(path for path in Path(data).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    recordings = [Recording(path.stem, {}, path) for path in files] or list_recordings(data)
    with RecordingReader() as reader:
        for recording in _progress(recordings[:limit], title, len(recordings[:limit])):
            try:
                clip = reader.read(recording, sample_rate)
            except Rejected as error:
                log.warning("skipped: %s", error.detail)
                continue
            yield recording.origin, loudness_normalise(clip, sample_rate, loudness)


def _progress(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """A bar with rate and time left on a terminal, a line at every tenth otherwise."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=title, total=total, dynamic_ncols=True)
        return
    import time

    start = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        if number * 10 // total > (number - 1) * 10 // total and total > 1:
            rate = number / max(time.monotonic() - start, 1e-9)
            left = (total - number) / rate
            print(f"{title}: {number} of {total}, {rate:.1f}/s, {left:.0f} s left", file=sys.stderr, flush=True)


def _seconds(audio: Any, codec: Any) -> str:
    return f"{len(audio) / codec.sample_rate:.2f} s"
