"""From token ids, voices and seeds to latents and samples: the model, the sampler and the codec behind EchoTTS.

Everything is compiled once per bucket (batch.py). Conditions are encoded once per utterance.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from echotts.checkpoint.facts import Facts, Limits
from echotts.config import DataConfig, ModelConfig, to_dict
from echotts.flow.options import SamplerConfig
from echotts.flow.sampling import encode_conditions, sample
from echotts.latents import LatentCodec, LatentScale
from echotts.model import Params, build, computed_with
from echotts.model.fused import choose_attention, frame_tile
from echotts.synthesis.batch import CompileNotice, make_noise, padded_references, padded_tokens, rounded
from echotts.synthesis.live import Utterance, cropped
from echotts.synthesis.references import CONTEXT_FRAMES, silence_of
from echotts.synthesis.speech import Speech, energy_end, find_end, find_start, silent_window
from echotts.text.arriving import FIRST_S

TEXT_SHAPES, FRAME_SHAPES = 2, 4  # number of compiled sizes up to the largest; references have one
SLOW_PACE = 1.75  # the window of a live piece is so many times its estimated duration


@dataclass(frozen=True, eq=False)
class Prompt:
    """What one utterance is made from. Without `voice`, the codec latents of a reference, its voice is the seed's."""

    ids: Int[np.ndarray, " n"]
    voice: Float[np.ndarray, "m c"] | None
    seed: int


class Synthesizer:
    """A model with its codec: samples latents of prompts, and decodes what of them is speech."""

    def __init__(self, params: Params, config: ModelConfig, facts: Facts, codec: LatentCodec, name: str) -> None:
        """`name` is written into files of speech."""
        self.codec, self.name = codec, name
        self.limits = facts.buckets or Limits.of(to_dict(DataConfig()))  # default: published training
        self.frame_rate_hz = codec.sample_rate / codec.hop_length
        self.silence = np.asarray(silence_of(codec) if facts.silence is None else facts.silence, np.float32)  # (1, c)
        self._scale = LatentScale.from_json(facts.latent_scale, config.latent_channels)
        self._config = config
        self.digest = _digest(params)
        platform = jax.default_backend()
        hooks = {"attend": choose_attention(platform, config), "frame_tile": frame_tile(platform)}
        params = computed_with(params, config.compute_dtype)
        self._model = build(dataclasses.replace(config, remat="none"), params, **hooks)
        self._announced = CompileNotice()

    @property
    def parameters(self) -> int:
        """The number of the model's parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self._model)))

    def warm_up(self, most: int, sampler: SamplerConfig) -> None:
        """Compiles what one utterance of up to `most` frames needs, also live."""
        longest = self.limits.tokens
        for tokens in {rounded(1, longest, TEXT_SHAPES), longest}:
            for frames in {self._short_frames(FIRST_S, most), most}:
                self.speak([Prompt(np.zeros(tokens, np.int32), None, 0)], frames, sampler, rows=1)

    def speak(self, prompts: Sequence[Prompt], most: int, sampler: SamplerConfig, rows: int) -> list[Speech]:
        """Synthesises at most `most` frames of each prompt, `rows` at a time in one compiled shape."""
        return [self.finish(latents) for latents in self.latents(prompts, most, sampler, rows)]

    def utter(self, prompt: Prompt, seconds: float, most: int, sampler: SamplerConfig, whole: bool) -> Utterance:
        """Speaks a piece of an estimated duration live; unless `whole`, it starts without silence."""
        short = self._short_frames(seconds, most)
        latents = next(self.latents([prompt], short, sampler, rows=1))
        if short < most and self._end(latents) is None:
            latents = next(self.latents([prompt], most, sampler, rows=1))  # slower than estimated: not cut off
        end = self._end(latents)
        if end is None:  # found by energy, which needs all samples
            speech = self.finish(latents)
            return Utterance(speech.latents, iter([speech.samples]), len(speech.samples))
        hop = self.codec.hop_length
        first = 0 if whole else find_start(latents, self.silence) * hop
        decoded = self.codec.decode_blocks(latents[None, : end + CONTEXT_FRAMES])
        return Utterance(latents[:end], cropped(decoded, first, end * hop), end * hop - first)

    def latents(
        self, prompts: Sequence[Prompt], most: int, sampler: SamplerConfig, rows: int
    ) -> Iterator[Float[np.ndarray, "t c"]]:
        """Samples latents of `most` frames, including the silence after speech, batch by batch."""
        channels, patch = self._config.latent_channels, self._config.patch
        tokens = rounded(max(len(prompt.ids) for prompt in prompts), self.limits.tokens, TEXT_SHAPES)
        reference_frames = -(-self.limits.reference_frames // patch) * patch
        frames = rounded(most, self.limits.frames, FRAME_SHAPES)
        voices = [None if prompt.voice is None else self._scale.normalise(prompt.voice) for prompt in prompts]
        for start in range(0, len(prompts), rows):
            chosen = [min(row, len(prompts) - 1) for row in range(start, start + rows)]
            text = padded_tokens([prompts[i].ids for i in chosen], tokens)
            speaker = padded_references([voices[i] for i in chosen], reference_frames, channels)
            noise = np.stack([make_noise(prompts[i].seed, frames, channels) for i in chosen])
            with self._announced(rows, tokens, frames / self.frame_rate_hz):
                conditions = encode_conditions(self._model, *map(jnp.asarray, (*text, *speaker)))
                latents = self._scale.restore(np.asarray(sample(self._model, conditions, jnp.asarray(noise), sampler)))
            yield from latents[: len(prompts) - start, :most]

    def finish(self, latents: Float[np.ndarray, "t c"]) -> Speech:
        """Crops the silent tail, decodes with the context that a codec frame needs, and crops the samples alike."""
        end = self._end(latents)
        known = end is not None
        decoded = latents if end is None else latents[: end + CONTEXT_FRAMES]
        samples = np.asarray(self.codec.decode(decoded[None]), np.float32)[0]
        if not known:
            end = energy_end(samples, self.codec.sample_rate, self.codec.hop_length)
        return Speech(samples[: end * self.codec.hop_length], self.codec.sample_rate, latents[:end], self.name)

    def _end(self, latents: Float[np.ndarray, "t c"]) -> int | None:
        return find_end(latents, self.silence, silent_window(self.limits.frames))

    def _short_frames(self, seconds: float, most: int) -> int:
        """The window of a live piece of an estimated duration: that of short pieces if it is enough, or `most`."""
        short = rounded(round(SLOW_PACE * FIRST_S * self.frame_rate_hz), self.limits.frames, FRAME_SHAPES)
        return min(short, most) if SLOW_PACE * seconds * self.frame_rate_hz <= short else most


def _digest(params: Params) -> str:
    """Identifies parameters; of large arrays only the first values are read."""
    read = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        read.update(np.asarray(leaf).reshape(-1)[:64].tobytes())
    return read.hexdigest()
