"""`echotts data`: recordings to shards, a look into shards, and the built-in corpus anew."""

from dataclasses import dataclass
from pathlib import Path

from echotts.cli import data_segment, data_speak
from echotts.cli.app import choose, parse
from echotts.cli.progress import Progress
from echotts.config import DEFAULT_CODEC

PROG = "echotts data"


@dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Turn recordings into a data set of latent shards. A run that was stopped goes on when it is called again."""

    source: str
    """Recordings: an LJSpeech folder, a .csv, .tsv or .jsonl table (audio, text, speaker, language), a folder of
    recordings with .txt files of the same names, or .tar shards of recordings (quote a glob). demo: the built-in
    corpus of spoken digits."""
    output: Path
    """Folder of the data set; made if missing."""
    codec: str = DEFAULT_CODEC
    """Codec that makes the latents: demo (built in), .pth, .safetensors, a folder, or a Hub id."""
    speaker: str | None = None
    """Speaker of recordings whose source names none; without a speaker a sample gets no reference."""
    language: str | None = None
    """Language of recordings whose source names none, such as en."""
    min_s: float = 0.5
    """Recordings shorter than this are refused, in seconds."""
    max_s: float = 30.72
    """Recordings longer than this are refused, in seconds."""
    loudness_lufs: float = -16.0
    """Loudness that recordings are brought to before encoding, in LUFS."""
    shard_samples: int = 1000
    """Samples in a shard."""
    heldout_share: float = 0.0
    """Share of the recordings that becomes a data set of its own, in OUTPUT/heldout, for --data.heldout of a training;
    none of its texts occurs in the other."""
    seed: int = 0
    """Decides how samples are mixed among shards, which reference each gets and which recordings are held out."""


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Count what is in shards: samples, hours, lengths, texts, speakers, channels, and what is broken."""

    data: str
    """Shards: a folder, a file, a glob or a range such as 's-{000..099}.tar'."""
    shards: int | None = None
    """Read only so many shards, evenly spaced; all without it."""
    listen: int | None = None
    """Instead of counting: decode the sample of this number, from 0, into --output, and its reference beside it."""
    output: Path = Path("sample.wav")
    """Sound file of --listen: .wav, .flac, .ogg or .mp3."""
    mp3_rate: int = 320
    """Bit rate of an .mp3 of --listen, kbit/s; below 32 kHz mp3 ends at 160, below 16 kHz at 64."""
    codec: str | None = None
    """Codec of --listen; without it the one that dataset.json names."""


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Speak the built-in corpus of digit strings anew (extra teachers). The one in the package stays as it is."""

    output: Path
    """Folder for the shards of recordings; made if missing."""
    seed: int = 0
    """Decides the digit strings."""


def main(argv: list[str]) -> int:
    """Run the sub-command that `argv` names; returns the exit code."""
    commands = {
        "prepare": ("recordings to a data set of latent shards", _prepare),
        "inspect": ("counts, lengths and statistics of shards; a listen", _inspect),
        "speak": ("a list of texts spoken by a text-to-speech system, to train on", data_speak.main),
        "segment": ("raw recordings cut into clips with their texts", data_segment.main),
        "demo": ("speak the built-in corpus of digit strings anew", _demo),
    }
    return choose(PROG, "Data sets of latents.", commands, argv)


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

    settings = Settings(
        seed=arguments.seed,
        speaker=arguments.speaker,
        language=arguments.language,
        min_s=arguments.min_s,
        max_s=arguments.max_s,
        loudness_lufs=arguments.loudness_lufs,
        shard_samples=arguments.shard_samples,
        heldout_share=arguments.heldout_share,
    )
    progress = Progress()
    try:
        summary = prepare(source, arguments.output, load_codec(arguments.codec), settings, progress)
    finally:
        progress.close()
    print(
        f"{arguments.output}: {summary.samples} samples ({summary.with_reference} with a reference), "
        f"{summary.hours:.2f} hours, {summary.shards} shards"
    )
    if summary.heldout:
        print(
            f"{arguments.output / HELDOUT_NAME}: {summary.heldout} samples held out; "
            f"`echotts train` takes them with --heldout {arguments.output / HELDOUT_NAME}"
        )
    if not summary.with_reference:
        print(
            "no sample has a reference, which is another recording of its speaker: name the speakers in a column "
            "speaker of the table, by a folder for each, or with --speaker"
        )
    if summary.rejected:
        causes = ", ".join(f"{cause} {count}" for cause, count in sorted(summary.rejected.items()))
        print(f"rejected: {causes}; each with its reason in {arguments.output / 'rejected.jsonl'}")
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
