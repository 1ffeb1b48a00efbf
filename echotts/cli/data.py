"""`echotts data`: prepare shards from recordings, inspect them, and synthesise or segment recordings."""

from dataclasses import dataclass
from pathlib import Path

from echotts.cli import data_segment, data_speak
from echotts.cli.app import choose, parse, settings_of
from echotts.cli.progress import Progress
from echotts.config import DEFAULT_CODEC

PROG = "echotts data"


@dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Turn recordings into a dataset of latent shards. Repeat the command to resume an interrupted run."""

    source: str
    """Recordings: an LJSpeech folder, a .csv, .tsv or .jsonl table (audio, text, speaker, language), a folder of
    recordings with .txt files of the same names, or .tar shards of recordings (quote a glob). demo: the built-in
    corpus of spoken digits."""
    output: Path
    """Folder of the dataset; created if missing."""
    codec: str = DEFAULT_CODEC
    """Codec that makes the latents: demo (built in), .pth, .safetensors, a folder, or a Hub id."""
    speaker: str | None = None
    """Speaker of recordings whose source does not name one; samples without a speaker get no reference."""
    language: str | None = None
    """Language of recordings whose source does not name one, such as en."""
    min_s: float = 0.5
    """Minimum duration in seconds; shorter recordings are rejected."""
    max_s: float = 30.72
    """Maximum duration in seconds; longer recordings are rejected."""
    loudness_lufs: float = -16.0
    """Loudness to which recordings are normalised before encoding, in LUFS."""
    shard_samples: int = 1000
    """Samples per shard."""
    heldout_share: float = 0.0
    """Share of the recordings that become a separate dataset in OUTPUT/heldout, for --data.heldout of a training; the
    two datasets have no text in common."""
    seed: int = 0
    """Seed of the order of samples in shards, the choice of references, and the choice of held-out recordings."""


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Count the contents of shards: samples, hours, lengths, texts, speakers, channels, and errors."""

    data: str
    """Shards: a folder, a file, a glob or a range such as 's-{000..099}.tar'."""
    shards: int | None = None
    """Read only this many shards, evenly spaced. None: all."""
    listen: int | None = None
    """Instead of counting, decode the sample with this number (from 0) to --output, and its reference beside it."""
    output: Path = Path("sample.wav")
    """Audio file for --listen: .wav, .flac, .ogg or .mp3."""
    mp3_rate: int = 320
    """Bit rate of an .mp3 for --listen, kbit/s; at most 160 below 32 kHz and 64 below 16 kHz."""
    codec: str | None = None
    """Codec for --listen. None: the one named in dataset.json."""


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Synthesise the built-in corpus of digit strings again (extra teachers). The one in the package is not changed."""

    output: Path
    """Folder for the shards of recordings; created if missing."""
    seed: int = 0
    """Seed of the digit strings."""


def main(argv: list[str]) -> int:
    """Runs the subcommand named in `argv`; returns the exit code."""
    commands = {
        "prepare": ("turn recordings into a dataset of latent shards", _prepare),
        "inspect": ("show counts, lengths and statistics of shards; decode a sample", _inspect),
        "speak": ("synthesise training recordings from a list of texts", data_speak.main),
        "segment": ("cut raw recordings into clips with transcripts", data_segment.main),
        "demo": ("synthesise the built-in corpus of digit strings again", _demo),
    }
    return choose(PROG, "Datasets of latents.", commands, argv)


def _prepare(argv: list[str]) -> int:
    arguments = parse(PrepareArguments, argv, prog=f"{PROG} prepare")
    source = arguments.source
    if source == "demo" and not Path(source).exists():
        from echotts.data.prepare.demo import corpus_path

        source = str(corpus_path() / "train-*.tar.gz")
    from echotts.codec.location import locate_codec
    from echotts.data.prepare.recordings import check_source

    check_source(source)
    locate_codec(arguments.codec)
    from echotts.codec import load_codec
    from echotts.data.prepare.pipeline import HELDOUT_NAME, Settings, prepare

    settings = settings_of(Settings, arguments)
    with Progress() as progress:
        summary = prepare(source, arguments.output, load_codec(arguments.codec), settings, progress)
    print(
        f"{arguments.output}: {summary.samples} samples ({summary.with_reference} with a reference), "
        f"{summary.hours:.2f} hours, {summary.shards} shards"
    )
    if summary.heldout:
        print(
            f"{arguments.output / HELDOUT_NAME}: {summary.heldout} samples held out; "
            f"use them in `echotts train` with --heldout {arguments.output / HELDOUT_NAME}"
        )
    if not summary.with_reference:
        print(
            "no sample has a reference (another recording of the same speaker): name the speakers in a column "
            "speaker of the table, by a folder for each, or with --speaker"
        )
    if summary.rejected:
        causes = ", ".join(f"{cause} {count}" for cause, count in sorted(summary.rejected.items()))
        print(f"rejected: {causes}; for reasons see {arguments.output / 'rejected.jsonl'}")
    return 0


def _inspect(argv: list[str]) -> int:
    arguments = parse(InspectArguments, argv, prog=f"{PROG} inspect")
    from echotts.data.prepare.inspect import inspect, listen, report

    if arguments.listen is None:
        print(report(inspect(arguments.data, arguments.shards)))
        return 0
    codec = None
    if arguments.codec is not None:
        from echotts.codec import load_codec

        codec = load_codec(arguments.codec)
    sample = listen(arguments.data, arguments.listen, arguments.output, codec, arguments.mp3_rate)
    print(f"{arguments.output}: {sample.name}, {len(sample.latent)} frames, speaker {sample.speaker}: {sample.text!r}")
    return 0


def _demo(argv: list[str]) -> int:
    arguments = parse(DemoArguments, argv, prog=f"{PROG} demo")
    from echotts.data.prepare.demo import build_corpus

    splits = build_corpus(arguments.output, arguments.seed)
    print(f"{arguments.output}: " + ", ".join(f"{count} {name}" for name, count in splits.items()))
    return 0
