"""`codec train`: trains a codec on recordings."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from echotts.cli.app import EXIT_ASKED_TO_LEAVE, UsageError, parse
from echotts.codec.config import CodecConfig
from echotts.codec.training.config import (
    PRESETS,
    CodecOptim,
    CodecTraining,
    CropConfig,
    DiscriminatorConfig,
    LossConfig,
    preset,
)
from echotts.config import RunConfig

if TYPE_CHECKING:
    from echotts.codec.training.run import Placement

PROG = "echotts codec train"
PresetName = Literal["dacvae-48k", "dacvae-24k", "dacvae-24k-3x", "dacvae-24k-2x", "dac-44k", "speech", "demo"]
SECTIONS = ("loss", "optim", "discriminators", "crops")
SHORT = {  # flag -> the section of the key that it abbreviates, "" for the top level
    "steps": "",
    "batch_size": "",
    "frames": "",
    "decoder_only": "",
    "learning_rate": "optim",
    "kl_weight": "loss",
    "wave_weight": "loss",
    "loudness": "crops",
    "seed": "run",
}
SIZES = ("sample_rate", "encoder_dim", "encoder_rates", "latent_dim", "decoder_dim", "codebook_dim", "n_codebooks")


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Train a codec (DACVAE or DAC) on recordings. Repeating the command resumes from --run_dir, bitwise identically.

    Defaults are those of the preset. Flags before --loss.* abbreviate the keys in brackets. Recordings are read in
    parts during training; added ones are found when the run is restarted. Ctrl-C or SIGTERM saves and exits with
    code 75.
    """

    data: str
    """Recordings: a folder, a table (csv, jsonl), or audio shards (.tar); separate several by commas. Required."""
    run_dir: str
    """Directory for checkpoints, metrics and samples, local or gs://bucket/run; see `echotts monitor`. Required."""
    output: Path
    """File to write at the end: .safetensors, or .pth in the published layout; its stem is the codec id. Required."""
    preset: PresetName = "demo"
    """Sizes, losses and schedule to start from."""
    steps: int | None = None
    """Total optimizer steps."""
    batch_size: int | None = None
    """Crops per step, over all devices."""
    frames: int | None = None
    """Length of a crop in latent frames."""
    learning_rate: float | None = None
    """Learning rate after warm-up [optim.learning_rate]."""
    kl_weight: float | None = None
    """Weight of the posterior's KL divergence from the unit normal [loss.kl]."""
    wave_weight: float | None = None
    """Weight of the waveform's L1 loss; less lets the decoder choose phases and keep high-band energy [loss.wave]."""
    init_from: str | None = None
    """Initial weights and sizes from this codec: a .pth or .safetensors, a folder, a Hub id, demo, speech."""
    decoder_only: bool = False
    """Freeze everything that produces latents: shards and models made with --init_from stay valid."""
    seed: int | None = None
    """Random seed of initial weights, crops and posterior noise [run.seed]."""
    loudness: float | None = None
    """Loudness to which crops are normalised, LUFS [crops.loudness]."""
    sample_rate: int | None = None
    """Sample rate in Hz."""
    encoder_dim: int | None = None
    """Channels of the encoder's first layer; doubled by each block."""
    encoder_rates: tuple[int, ...] | None = None
    """Downsampling factor of each block; their product is the hop."""
    latent_dim: int | None = None
    """Channels between the networks and the bottleneck."""
    decoder_dim: int | None = None
    """Channels of the decoder's first layer; halved by each block."""
    codebook_dim: int | None = None
    """Channels of a latent, or of codebook vectors."""
    n_codebooks: int | None = None
    """Codebooks of a residual vector quantizer (DAC); 0: a Gaussian bottleneck (DACVAE)."""
    dtype: Literal["float32", "float16"] = "float16"
    """Storage type of the numbers in a .safetensors."""
    loss: LossConfig
    optim: CodecOptim
    discriminators: DiscriminatorConfig
    crops: CropConfig
    run: RunConfig


def train(argv: list[str]) -> int:
    """Trains a codec; returns the exit code, EXIT_ASKED_TO_LEAVE if stopped by a signal."""
    arguments = parse_arguments(argv)
    if arguments.output.suffix not in (".safetensors", ".pth"):
        raise UsageError(f"--output {arguments.output} must be a .safetensors or .pth")
    from echotts.codec.location import locate_codec
    from echotts.data.prepare.clips import check_clips

    check_clips(arguments.data)
    if arguments.init_from is not None:
        locate_codec(arguments.init_from)
    from echotts.codec import load_codec
    from echotts.codec.training.loop import train_codec
    from echotts.data.prepare.clips import open_clips
    from echotts.files import check_outputs
    from echotts.multihost import processes, runtime

    base = load_codec(arguments.init_from) if arguments.init_from is not None else None
    training = training_of(arguments, base.config if base is not None else None)
    check_outputs([arguments.output], filter(None, [arguments.init_from]))
    processes.join(training)
    with processes.all_end_at_once():
        clips = open_clips(arguments.data)
        hours = clips.seconds.sum() / 3600
        print(f"{len(clips.seconds)} clips, {hours:.2f} h, at {training.codec.sample_rate} Hz", flush=True)
        start = base.params if base is not None else None
        show = _printer(training.steps) if runtime.is_primary() else lambda step, line: None
        params, step = train_codec(training, clips, _placement(training), start, report=show)
    if step < training.steps:
        print(f"stopped and saved after step {step} of {training.steps}; the same command resumes from there")
        return EXIT_ASKED_TO_LEAVE
    if runtime.is_primary():
        _write(arguments, params, training.codec)
    return 0


def parse_arguments(argv: Sequence[str]) -> TrainArguments:
    """The flags on top of the preset's sections. Raises UsageError for a wrong call."""
    words = [word for argument in argv for word in argument.split("=", 1)]
    name = words[words.index("--preset") + 1] if "--preset" in words[:-1] else "demo"
    base = PRESETS.get(name, PRESETS["demo"])  # the parser rejects an unknown name
    sections = {name: getattr(base, name) for name in (*SECTIONS, "run")}
    given = TrainArguments(data="", run_dir="", output=Path(), **sections)
    arguments = parse(TrainArguments, argv, prog=PROG, default=given)
    for flag in ("data", "run_dir", "output"):
        if getattr(arguments, flag) == getattr(given, flag):
            raise UsageError(f"--{flag} is missing (see {PROG} --help)")
    return arguments


def training_of(arguments: TrainArguments, sizes: CodecConfig | None) -> CodecTraining:
    """The preset overridden by the flags; `sizes` are those of --init_from. UsageError for an invalid value."""
    training = preset(arguments.preset)
    given = {name: getattr(arguments, name) for name in SIZES if getattr(arguments, name) is not None}
    if "encoder_rates" in given:
        given["decoder_rates"] = given["encoder_rates"][::-1]
    sections: dict[str, dict[str, Any]] = {name: {} for name in (*SECTIONS, "run", "")}
    for flag, section in SHORT.items():
        if (value := getattr(arguments, flag)) is not None:
            sections[section][flag.removesuffix("_weight")] = value
    sections["run"]["run_dir"] = arguments.run_dir
    try:
        codec = dataclasses.replace(sizes or training.codec, **given)
        parts = {name: dataclasses.replace(getattr(arguments, name), **sections[name]) for name in (*SECTIONS, "run")}
        return dataclasses.replace(training, codec=codec, **parts, **sections[""])
    except ValueError as error:
        raise UsageError(str(error)) from None


def _placement(training: CodecTraining) -> "Placement":
    from echotts.codec.training.run import Placement
    from echotts.training import mesh as meshes

    mesh = meshes.make_mesh(data=training.run.data_ways)
    meshes.check_batch(training.batch_size, mesh)
    return Placement(meshes.batch_sharding(mesh), meshes.replicated(mesh))


def _write(arguments: TrainArguments, params: Any, config: CodecConfig) -> None:
    from echotts.codec import save_codec
    from echotts.codec.publish import write_published

    if arguments.output.suffix == ".pth":
        write_published(arguments.output, params, config)
    else:
        save_codec(arguments.output, params, config, arguments.output.stem, arguments.dtype)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB")


def _printer(steps: int) -> Any:
    from echotts.training.progress import duration

    def show(step: int, line: Mapping[str, float]) -> None:
        losses = ", ".join(f"{name[5:]} {value:.4f}" for name, value in line.items() if name.startswith("loss/"))
        left = duration(line["time/left_s"])
        print(f"step {step}/{steps}: {losses}, {1 / line['time/step_s']:.2f} steps/s, {left} left", flush=True)

    return show
