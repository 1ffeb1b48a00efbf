"""From token ids, voices and seeds to latents and samples: the model, the sampler and the codec behind EchoTTS.

Everything is compiled once per bucket (batch.py). Conditions are encoded once per utterance.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from echotts.audio.stretch import stretch, stretched, stretched_count
from echotts.checkpoint.facts import Facts, Limits
from echotts.config import DataConfig, ModelConfig, to_dict
from echotts.flow.options import SamplerConfig
from echotts.flow.sampling import encode_conditions, sample
from echotts.latents import LatentCodec, LatentScale
from echotts.model import BlockDiT, Params, build, computed_with, count_parameters
from echotts.model.duration import predict_frames
from echotts.model.fused import choose_attention, frame_tile
from echotts.model.student import student_params
from echotts.synthesis.batch import CompileNotice, make_noise, padded_references, padded_tokens, rounded
from echotts.synthesis.length import (
    ESTIMATE_MARGIN,
    MARGIN,
    SPARE_FRAMES,
    AutoDuration,
    size_for,
    window_sizes,
)
from echotts.synthesis.live import Utterance, cropped
from echotts.synthesis.references import CONTEXT_FRAMES, silence_of
from echotts.synthesis.speech import (
    KEPT_TAIL_FRAMES,
    Speech,
    energy_end,
    find_end,
    find_start,
    reference_pace,
    silent_window,
)

TEXT_SHAPES = 2  # number of compiled sizes up to the largest; references have one, windows those of length.py

logger = logging.getLogger(__name__)
_predict = jax.jit(predict_frames)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What one utterance is made from. Without `voice`, the codec latents of a reference, its voice is the seed's.

    `estimate_s` are the seconds that its text takes a reader of medium pace.
    """

    ids: Int[np.ndarray, " n"]
    voice: Float[np.ndarray, "m c"] | None
    seed: int
    estimate_s: float


class Synthesizer:
    """A model with its codec: samples latents of prompts, and decodes what of them is speech."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        facts: Facts,
        codec: LatentCodec,
        name: str = "unnamed",
        predictor: Params | None = None,
        student: Params | None = None,
    ) -> None:
        """`name` is written into files of speech; the model may have a duration predictor and a student.

        ValueError if the codec does not match the model.
        """
        if codec.latent_channels != config.latent_channels:
            raise ValueError(
                f"the model makes latents of {config.latent_channels} channels, but the codec {codec.codec_id} takes "
                f"{codec.latent_channels}: use the codec that the model was trained with"
            )
        self.config, self.facts, self.codec = config, facts, codec
        self.name = name if facts.step is None else f"{name}, step {facts.step}"
        self.limits = facts.buckets or Limits.of(to_dict(DataConfig()))  # default: published training
        self.frame_rate_hz = codec.sample_rate / codec.hop_length
        self.silence = np.asarray(silence_of(codec) if facts.silence is None else facts.silence, np.float32)  # (1, c)
        self._scale = LatentScale.from_json(facts.latent_scale, config.latent_channels)
        self._predictor = predictor
        self._sizes = window_sizes(self.limits.frames, self.frame_rate_hz)
        self._silent_frames = silent_window(self.limits.frames)  # that end speech
        self.digest = _digest([params, predictor, student])
        self.parameters, self.has_student = count_parameters(params), student is not None
        self._base = None if student is None else params
        self._models = {self.has_student: self._built(params, student)}
        self._announced = CompileNotice()

    def _built(self, params: Params, student: Params | None) -> BlockDiT:
        platform = jax.default_backend()
        hooks: dict[str, Any] = {"attend": choose_attention(platform, self.config), "frame_tile": frame_tile(platform)}
        if student is not None:
            params, hooks["student"] = student_params(params, student), True
        params = computed_with(params, self.config.compute_dtype)
        return build(dataclasses.replace(self.config, remat="none"), params, **hooks)

    def _model(self, as_student: bool) -> BlockDiT:
        """The student or the model itself, which is built when it is first needed beside a student."""
        if not as_student and self._base is not None:
            self._models[False], self._base = self._built(self._base, None), None
        return self._models[as_student]

    def warm_up(self, duration: float | AutoDuration, sampler: SamplerConfig) -> None:
        """Compiles what one utterance at a time needs."""
        longest, most = self.limits.tokens, self.most_frames(duration)
        sizes = {size for size in self._sizes if size < most} if isinstance(duration, AutoDuration) else set()
        for tokens in {rounded(1, longest, TEXT_SHAPES), longest}:
            prompt = Prompt(np.zeros(tokens, np.int32), None, 0, 0.0)
            self.expected_s([prompt], rows=1)
            for frames in sizes | {most}:
                self.finish(next(self._sampled([prompt], frames, sampler, rows=1)))

    def speak(
        self,
        prompts: Sequence[Prompt],
        duration: float | AutoDuration,
        sampler: SamplerConfig,
        rows: int,
        speed: float = 1.0,
    ) -> list[Speech]:
        """Speaks each prompt, `rows` at a time. `duration` is a maximum in seconds, or how to choose windows."""
        speeches = [self.finish(latents) for latents in self.latents(prompts, duration, sampler, rows)]
        rate = self.codec.sample_rate
        return [dataclasses.replace(one, samples=stretch(one.samples, rate, speed)) for one in speeches]

    def utter(
        self, prompt: Prompt, duration: float | AutoDuration, sampler: SamplerConfig, speed: float, whole: bool
    ) -> Utterance:
        """Speaks a piece live; unless `whole`, it starts without silence."""
        said = self._uttered(self.latents([prompt], duration, sampler, rows=1)[0], whole)
        blocks = stretched(said.blocks, said.count, self.codec.sample_rate, speed)
        return Utterance(said.latents, blocks, stretched_count(said.count, speed))

    def _uttered(self, latents: Float[np.ndarray, "t c"], whole: bool) -> Utterance:
        end = self._end(latents)
        if end is None:  # found by energy, which needs all samples
            speech = self.finish(latents)
            return Utterance(speech.latents, iter([speech.samples]), len(speech.samples))
        hop = self.codec.hop_length
        first = 0 if whole else find_start(latents, self.silence) * hop
        decoded = self.codec.decode_blocks(latents[None, : end + CONTEXT_FRAMES])
        return Utterance(latents[:end], cropped(decoded, first, end * hop), end * hop - first)

    def latents(
        self, prompts: Sequence[Prompt], duration: float | AutoDuration, sampler: SamplerConfig, rows: int
    ) -> list[Float[np.ndarray, "t c"]]:
        """The latents of each prompt, including the silence after speech.

        Prompts with the same window are sampled together. Without an end of speech in it, they are sampled again in the
        longest window.
        """
        most, windows = self.most_frames(duration), self.windows(prompts, duration, rows)
        found: dict[int, Float[np.ndarray, "t c"]] = {}

        def sample_all(numbers: list[int], window: int) -> None:
            sampled = self._sampled([prompts[i] for i in numbers], window, sampler, min(rows, len(numbers)))
            found.update(zip(numbers, sampled, strict=True))

        for window in sorted(set(windows)):
            sample_all([number for number, one in enumerate(windows) if one == window], window)
        late = [number for number, window in enumerate(windows) if window < most and not self._ends_in(found[number])]
        if late:
            logger.debug("%d of %d have no end in their windows: synthesised again", len(late), len(prompts))
            sample_all(late, most)
        return [found[number] for number in range(len(prompts))]

    def expected_s(self, prompts: Sequence[Prompt], rows: int) -> list[float]:
        """How many seconds each prompt takes: by the model's predictor or, without one, as estimated."""
        if self._predictor is None:
            return [prompt.estimate_s * self._pace(prompt.voice) for prompt in prompts]
        predicted: list[float] = []
        for start in range(0, len(prompts), rows):
            frames = _predict(self._predictor, self._model(self.has_student), *self._conditions(prompts, start, rows))
            predicted += (np.asarray(frames) / self.frame_rate_hz).tolist()
        return predicted[: len(prompts)]

    def _pace(self, voice: Float[np.ndarray, "m c"] | None) -> float:
        return 1.0 if voice is None else reference_pace(voice, self.silence, self.frame_rate_hz)

    def most_frames(self, duration: float | AutoDuration) -> int:
        """The longest window for a duration, in frames."""
        seconds = duration.most_s if isinstance(duration, AutoDuration) else duration
        if seconds is None:
            return self.limits.frames
        return min(max(1, round(seconds * self.frame_rate_hz)), self.limits.frames)

    def windows(self, prompts: Sequence[Prompt], duration: float | AutoDuration, rows: int) -> list[int]:
        """The window of each prompt, in frames."""
        most = self.most_frames(duration)
        if not isinstance(duration, AutoDuration):
            return [most] * len(prompts)
        margin = (ESTIMATE_MARGIN if self._predictor is None else MARGIN) * self.frame_rate_hz
        spare = self._silent_frames + SPARE_FRAMES
        wanted = [margin * duration.limited(seconds) + spare for seconds in self.expected_s(prompts, rows)]
        return [min(size_for(frames, self._sizes), most) for frames in wanted]

    def _conditions(self, prompts: Sequence[Prompt], start: int, rows: int) -> tuple[Any, ...]:
        """Texts and voices of `rows` prompts, as the encoders take them; the last prompt fills up."""
        patch = self.config.patch
        chosen = [prompts[min(row, len(prompts) - 1)] for row in range(start, start + rows)]
        tokens = rounded(max(len(prompt.ids) for prompt in prompts), self.limits.tokens, TEXT_SHAPES)
        frames = -(-self.limits.reference_frames // patch) * patch
        voices = [None if prompt.voice is None else self._scale.normalise(prompt.voice) for prompt in chosen]
        text = padded_tokens([prompt.ids for prompt in chosen], tokens)
        speaker = padded_references(voices, frames, self.config.latent_channels)
        return tuple(map(jnp.asarray, (*text, *speaker)))

    def _sampled(
        self, prompts: Sequence[Prompt], most: int, sampler: SamplerConfig, rows: int
    ) -> Iterator[Float[np.ndarray, "t c"]]:
        """Samples latents of `most` frames, batch by batch in one compiled shape."""
        frames, channels = size_for(most, self._sizes), self.config.latent_channels
        for start in range(0, len(prompts), rows):
            seeds = [prompts[min(row, len(prompts) - 1)].seed for row in range(start, start + rows)]
            noise = np.stack([make_noise(seed, frames, channels) for seed in seeds])
            conditions = self._conditions(prompts, start, rows)
            model = self._model(sampler.student)
            with self._announced(rows, conditions[0].shape[1], frames / self.frame_rate_hz):
                encoded = encode_conditions(model, *conditions)
                latents = self._scale.restore(np.asarray(sample(model, encoded, jnp.asarray(noise), sampler)))
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
        return find_end(latents, self.silence, self._silent_frames)

    def _ends_in(self, latents: Float[np.ndarray, "t c"]) -> bool:
        """Whether speech ends in these latents, with all of the silence that tells an end from a pause."""
        end = self._end(latents)
        return end is not None and end - KEPT_TAIL_FRAMES + self._silent_frames <= len(latents)


def _digest(params: Any) -> str:
    """Identifies parameters; of large arrays only the first values are read."""
    read = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        read.update(np.asarray(leaf).reshape(-1)[:64].tobytes())
    return read.hexdigest()
