"""Configuration of a codec training (sizes, losses, optimizer, crops) and its presets.

Loss weights and optimizer default to DAC's; docs/codec.md lists them, and the alternatives that the presets use.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from echotts.codec.config import CodecConfig
from echotts.config import RunConfig

DAC_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
PERIOD_LAYERS = 5  # of each multi-period discriminator
SPEECH_SCALES = ((128, 16), (256, 32), (512, 48), (1024, 80))


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms. A term with weight 0 is disabled, and whatever only it needs is not computed."""

    mel: float = 15.0
    """Multi-scale log10 mel L1 loss, summed over the scales."""
    mel_scales: tuple[tuple[int, int], ...] = DAC_SCALES
    """(window in samples, number of mel bands) of each scale."""
    stft: float = 0.0
    """Spectral convergence plus L1 of log magnitudes, averaged over the windows."""
    stft_windows: tuple[int, ...] = (128, 256, 512, 1024)
    """STFT windows in samples."""
    floor: float = 1e-5
    """Magnitudes below this count as equal; a full-scale sine has magnitude window / 4."""
    wave: float = 0.0
    """L1 loss of the waveform."""
    kl: float = 1e-2
    """KL divergence of the posterior from the unit normal, summed over channels. DACVAE only."""
    free_bits: float = 0.0
    """KL divergence per channel that is not penalised."""
    commitment: float = 0.25
    """Pulls features towards their codebook vectors. DAC only."""
    codebook: float = 1.0
    """Pulls codebook vectors towards the features. DAC only."""
    quantizer_dropout: float = 0.5
    """Fraction of the batch quantized with only the first n codebooks, n random. DAC only."""
    feature: float = 2.0
    """Feature matching loss, summed over layers and discriminators."""
    adversarial: float = 1.0
    """Least-squares adversarial loss, summed over discriminators."""
    adversarial_from: int = 0
    """Step at which the discriminators start: before it, reconstruction alone is trained."""

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in asdict(self).items() if isinstance(value, float)}
        if low := [name for name, value in numbers.items() if value < 0]:
            raise ValueError(f"loss.{low[0]} {numbers[low[0]]} must not be negative")
        if not (self.mel or self.stft or self.wave):
            raise ValueError("loss: mel, stft and wave are all 0: enable a reconstruction term")
        if not self.floor:
            raise ValueError("loss.floor must be above 0: the logarithm of silence is undefined")

    @property
    def uses_discriminators(self) -> bool:
        return self.feature > 0 or self.adversarial > 0

    @property
    def longest_window(self) -> int:
        return max([0, *(window for window, _ in self.mel_scales), *self.stft_windows])


@dataclass(frozen=True, kw_only=True)
class CodecOptim:
    """AdamW for the codec, and a second one with the same learning rate for the discriminators."""

    learning_rate: float = 1e-4
    """Learning rate after warm-up."""
    warmup_steps: int = 0
    """Number of steps over which the learning rate rises from 0."""
    decay: float = 0.999996
    """Factor by which the learning rate decays per step."""
    decay_share: float = 0.0
    """Fraction of the steps, at the end, over which the learning rate also falls to 0 along a cosine."""
    b1: float = 0.8
    b2: float = 0.99
    weight_decay: float = 1e-2
    """Decoupled weight decay, scaled by the learning rate."""
    clip_norm: float = 1e3
    """Maximum global norm of the codec's gradient."""
    discriminator_clip_norm: float = 10.0
    """Maximum global norm of the discriminators' gradient."""
    ema_decay: float = 0.999
    """Per-step decay of the EMA of the weights; the EMA is what is exported."""


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How crops are drawn from recordings and augmented."""

    loudness: float | None = -16.0
    """Loudness to which a crop is normalised, in LUFS; none leaves it unchanged. Peaks stay within full scale."""
    level_spread_db: float = 0.0
    """Maximum random attenuation of a crop, in dB."""
    speed_spread: float = 0.0
    """Crops are resampled by a random factor in 1 - spread..1 + spread, which changes pitch and speed."""
    noise_share: float = 0.0
    """Fraction of crops to which noise is added, 20 to 45 dB below the crop."""
    room_share: float = 0.0
    """Fraction of crops convolved with a random room impulse response."""
    narrow_share: float = 0.0
    """Fraction of crops band-limited to telephone bandwidth."""
    silence_db: float = -60.0
    """A crop with a lower RMS, before normalisation, is redrawn, up to 8 times."""
    clipped_share: float = 0.001
    """A crop with a peak at full scale and a larger fraction of samples at that peak is redrawn."""
    heldout_share: float = 0.01
    """Fraction of recordings held out for evaluation, chosen by name; at least one if there are 20 or more."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Which discriminators are used, and their widths. The defaults are DAC's, 42 M parameters."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """Periods of the multi-period discriminators, in samples."""
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    """Channels of their five layers."""
    windows: tuple[int, ...] = (2048, 1024, 512)
    """Windows of the STFT discriminators, in samples."""
    bands: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    """Band edges of the STFT discriminators, as fractions of the spectrum."""
    band_channels: int = 32
    """Channels of the STFT discriminators' layers."""

    def __post_init__(self) -> None:
        if len(self.period_channels) != PERIOD_LAYERS:
            raise ValueError(f"period_channels {self.period_channels}: give {PERIOD_LAYERS} widths")
        if any(window % 4 for window in self.windows):
            raise ValueError(f"windows {self.windows} of the discriminators must be multiples of 4")
        if list(self.bands) != sorted(set(self.bands)) or len(self.bands) < 2:
            raise ValueError(f"bands {self.bands}: give increasing edges from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """One codec training. A crop has `frames` latent frames.

    `decoder_only` freezes everything that produces latents or codes, so that shards and models made with the codec stay
    valid. `run` sets the run directory and when to save; its fields about speech synthesis are not used.
    """

    preset: str = "dacvae-48k"
    codec: CodecConfig = field(default_factory=CodecConfig)
    steps: int = 400_000
    batch_size: int = 72
    frames: int = 10
    decoder_only: bool = False
    loss: LossConfig = field(default_factory=LossConfig)
    optim: CodecOptim = field(default_factory=CodecOptim)
    discriminators: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.frames) < 1:
            raise ValueError(
                f"steps {self.steps}, batch_size {self.batch_size} and frames {self.frames} must be at least 1"
            )
        longest = max(self.loss.longest_window, *self.discriminators.windows if self.loss.uses_discriminators else (0,))
        if self.crop_samples < longest:
            raise ValueError(
                f"frames {self.frames} give crops of {self.crop_samples} samples, shorter than the longest spectral "
                f"window, {longest}: raise frames"
            )

    @property
    def crop_samples(self) -> int:
        return self.frames * self.codec.hop_length

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def preset(name: str) -> CodecTraining:
    """The training preset `name`. Raises ValueError that lists the names if there is none."""
    if name not in PRESETS:
        raise ValueError(f"unknown codec training preset {name!r}: choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], preset=name)


_SPEECH_LOSS = LossConfig(
    mel=0.6, mel_scales=SPEECH_SCALES, stft=1.0, floor=1e-2, wave=10.0, kl=2e-4, feature=0.0, adversarial=0.0
)
_SMALL_CODEC = CodecConfig(
    encoder_dim=16,
    encoder_rates=(4, 4, 5, 8),
    latent_dim=256,
    decoder_dim=256,
    decoder_rates=(8, 5, 4, 4),
    codebook_dim=64,
    sample_rate=16000,
)
_SMALL_OPTIM = CodecOptim(
    learning_rate=8e-4, warmup_steps=200, decay=1.0, decay_share=0.5, weight_decay=1e-3, clip_norm=10.0
)
_24K = CodecConfig(encoder_rates=(2, 6, 8, 10), decoder_rates=(10, 8, 6, 2), codebook_dim=64, sample_rate=24000)

PRESETS: dict[str, CodecTraining] = {
    # facebookresearch/dacvae: 25 latents per second with 128 channels; crops of 0.4 s.
    "dacvae-48k": CodecTraining(),
    # 25 latents per second with 64 channels; then primepake/dac-vae's: 64 channels at 3 times that rate, 80 channels at
    # twice the rate. All strides are even: with odd ones the original's encoder loses a frame.
    "dacvae-24k": CodecTraining(codec=_24K),
    "dacvae-24k-3x": CodecTraining(
        codec=replace(_24K, encoder_rates=(2, 4, 4, 10), decoder_rates=(10, 4, 4, 2)), frames=30
    ),
    "dacvae-24k-2x": CodecTraining(
        codec=replace(_24K, encoder_rates=(2, 4, 6, 10), decoder_rates=(10, 6, 4, 2), codebook_dim=80), frames=20
    ),
    # descriptinc/descript-audio-codec at 44.1 kHz: 9 codebooks, 86 frames per second.
    "dac-44k": CodecTraining(
        codec=CodecConfig(
            encoder_rates=(2, 4, 8, 8), decoder_rates=(8, 8, 4, 2), codebook_dim=8, n_codebooks=9, sample_rate=44100
        ),
        frames=32,
    ),
    # Any voice, small, the built-in codec: reconstruction first, then narrow discriminators, affordable on a CPU.
    "speech": CodecTraining(
        codec=replace(_SMALL_CODEC, codebook_dim=23),
        steps=400_000,
        batch_size=5,
        frames=16,
        loss=replace(_SPEECH_LOSS, wave=5.0, kl=5e-5, feature=0.5, adversarial=0.1, adversarial_from=200_000),
        optim=replace(_SMALL_OPTIM, learning_rate=6e-4, decay_share=0.1),
        discriminators=DiscriminatorConfig(
            periods=(2, 3, 5), period_channels=(8, 32, 64, 64, 64), windows=(1024, 512), band_channels=8
        ),
        crops=CropConfig(level_spread_db=16.0, speed_spread=0.15, noise_share=0.1, room_share=0.1, narrow_share=0.1),
    ),
    # The codec of the demo model: ten words, five voices.
    "demo": CodecTraining(
        codec=_SMALL_CODEC, steps=10_000, batch_size=4, frames=32, loss=_SPEECH_LOSS, optim=_SMALL_OPTIM
    ),
}
