"""Presets: functions that return complete configurations.

Model sizes come from LAION's README and the published parameter totals (docs/model.md).
"""

from echotts.config.complete import Config
from echotts.config.data import Bucket, DataConfig
from echotts.config.learning import FlowConfig, OptimConfig
from echotts.config.model import EncoderConfig, ModelConfig
from echotts.config.run import RunConfig

DEFAULT_CODEC = "speech"  # the built-in codec, default of commands
# narrow for short clips: estimated from 600 English sentences, 17 % of the work is padding, and 28 % from 64 frames up
SMALL_BUCKETS = ((48, 32), (64, 48), (80, 60), (96, 72), (128, 96), (192, 144))


def demo() -> Config:
    """4.86M parameters: trains in minutes on two CPU cores, on the built-in digit corpus.

    It has a single bucket, so that the model always sees the whole window and learns where speech ends in it.
    """
    return Config(
        preset="demo",
        model=ModelConfig(
            latent_channels=64,
            width=192,
            depth=6,
            heads=4,
            mlp_width=512,
            text=EncoderConfig(width=128, depth=4, heads=2, mlp_width=256),
            speaker=EncoderConfig(width=128, depth=1, heads=2, mlp_width=256),
            timestep_width=128,
            adaln_rank=16,
            compute_dtype="float32",
            remat="dots",
        ),
        data=DataConfig(
            batch_size=16,
            buckets=(Bucket(frames=64, tokens=48),),
            reference_frames=48,
            streams=8,
            interleave=1,  # a corpus of few shards
        ),
        optim=OptimConfig(steps=2400, learning_rate=1.5e-3, ema_decay=0.995, init="fan_in"),
        run=RunConfig(save_every_steps=500, eval_every=250, sample_every=500, codec=DEFAULT_CODEC),
    )


def small() -> Config:
    """11.5M parameters: English from nothing on a CPU or one GPU; docs/recipes/small-voice.md has its learning curve.

    For clips of at most 7.7 s, with latents of the codec `speech`.
    """
    return Config(
        preset="small",
        model=ModelConfig(
            latent_channels=23,
            width=256,
            depth=8,
            heads=4,
            mlp_width=640,
            text=EncoderConfig(width=192, depth=6, heads=4, mlp_width=384),
            speaker=EncoderConfig(width=128, depth=2, heads=2, mlp_width=256),
            adaln_rank=16,
            compute_dtype="float32",
            remat="dots",
        ),
        flow=FlowConfig(time_mean=1.0, alignment=0.2),
        data=DataConfig(
            batch_size=16,
            buckets=tuple(Bucket(frames=f, tokens=n) for f, n in SMALL_BUCKETS),
            reference_frames=96,
            tokenizer="english",
            streams=8,
        ),
        optim=OptimConfig(steps=20_000, learning_rate=1.5e-3, decay_share=0.3, ema_decay=0.999, init="fan_in"),
        run=RunConfig(save_every_steps=500, eval_every=500, sample_every=1000, codec=DEFAULT_CODEC),
    )


def echo_840m() -> Config:
    """840,536,960 parameters."""
    encoder = EncoderConfig(width=768, depth=8, heads=6, mlp_width=2048)
    return Config(
        preset="840m",
        model=ModelConfig(width=1280, depth=24, heads=10, mlp_width=3520, text=encoder, speaker=encoder, remat="full"),
    )


def echo_1b3() -> Config:
    """1,303,763,072 parameters."""
    encoder = EncoderConfig(width=1024, depth=10, heads=8, mlp_width=2816)
    return Config(
        preset="1.3b",
        model=ModelConfig(width=1536, depth=24, heads=12, mlp_width=4224, text=encoder, speaker=encoder, remat="full"),
    )


PRESETS = {"demo": demo, "small": small, "840m": echo_840m, "1.3b": echo_1b3}


def nearest_preset(model: ModelConfig) -> Config:
    """The preset whose decoder has the width of a model, or the nearest one."""
    return min((create() for create in PRESETS.values()), key=lambda config: abs(config.model.width - model.width))


def preset(name: str) -> Config:
    """The named preset; ValueError lists the known names."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
