"""`codec train`: a codec from recordings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from echotts.cli.app import parse
from echotts.cli.codec.recordings import clips_of

if TYPE_CHECKING:
    from echotts.codec import CodecConfig


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


def train(argv: list[str]) -> int:
    """A codec from recordings; gives the exit code."""
    arguments = parse(TrainArguments, argv, prog="echotts codec train")
    from echotts.codec import load_codec, save_codec
    from echotts.codec.training import CodecTraining, train_codec
    from echotts.files import check_outputs

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
    check_outputs([arguments.output], filter(None, [arguments.init_from]))
    clips = [
        (clip * 32767).astype("int16")
        for _, clip in clips_of(arguments.data, config.sample_rate, arguments.loudness, "read")
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
