"""Class EchoTTS: text to speech with a model, its codec and the sampler.

The text is prepared in texts.py, sampled and decoded in synthesizer.py.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Int

from echotts.audio import Samples
from echotts.audio.marking import MESSAGE, Marker, marked, marked_blocks
from echotts.config import SEED_BITS, DtypeName
from echotts.files import MODELS
from echotts.flow.options import SamplerConfig, default_preset, sampler_config
from echotts.synthesis import references
from echotts.synthesis.candidates import SEED_STEP, Choose, choose_by_duration
from echotts.synthesis.demo import demo_seconds, demo_text
from echotts.synthesis.length import AutoDuration, Duration, as_duration, check_speed
from echotts.synthesis.live import Utterance, live_blocks
from echotts.synthesis.locate import DEMO, locate_checkpoint, locate_codec
from echotts.synthesis.longform import joined, speak_pieces
from echotts.synthesis.references import SpeakerReference
from echotts.synthesis.speech import Speech
from echotts.synthesis.synthesizer import Prompt, Synthesizer
from echotts.synthesis.texts import Texts
from echotts.synthesis.voices import Voice
from echotts.text.sentences import Piece
from echotts.text.tokens import tokenizer_from_json

BATCH_ROWS = 16
MAX_SEED = 2**SEED_BITS - 1

logger = logging.getLogger(__name__)


class EchoTTS:
    """A model with its codec, ready to synthesise. Create one with `load`."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        """ValueError if the tokenizer does not match the model."""
        self._synthesizer = synthesizer
        self.config, self.facts, self.codec = synthesizer.config, synthesizer.facts, synthesizer.codec
        self.name, self.limits = synthesizer.name, synthesizer.limits
        tokenizer = tokenizer_from_json(self.facts.tokenizer or {"kind": "byte"})
        if tokenizer.vocabulary > self.config.vocabulary:
            raise ValueError(
                f"the checkpoint's tokenizer has {tokenizer.vocabulary} ids, its model only {self.config.vocabulary}"
            )
        self._texts = Texts(tokenizer, self.limits.tokens, self.window_s, tokenizer.readable)
        self._watermark: Sequence[int] | None = None  # the message that the codec embeds
        self._message: Sequence[int] | None = None  # of `_mark`
        self._find_hash: Callable[[], str] | None = None  # of the weights, for voices that were trained with them

    def __repr__(self) -> str:
        return (
            f"EchoTTS({self._synthesizer.parameters / 1e6:.1f} M parameters, up to {self.window_s:.1f} s and "
            f"{self.limits.tokens - 1} bytes of text at once, codec {self.codec.codec_id} at {self.sample_rate} Hz, "
            f"{self.facts.weights or '?'} weights of step {'?' if self.facts.step is None else self.facts.step})"
        )

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None = None,
        codec: str | Path | None = None,
        *,
        weights: Literal["ema", "raw"] = "ema",
        dtype: DtypeName | None = None,
        adapter: str | Path | None = None,
        watermark: bool = True,
    ) -> "EchoTTS":
        """Loads a run directory (also gs://), a checkpoint in one, .safetensors, .pkl or Hub id.

        "demo" and "english" are built in; None is demo, which speaks digits.

        The codec is the one that the checkpoint names (published ones name none; the default is then
        facebook/dacvae-watermarked, from the local cache or the Hub); `codec` overrides it. `weights` ("ema" or "raw")
        selects weights of a run directory. The default `dtype` of computation is float32 on a CPU and the model's own
        elsewhere. `adapter` is a file or a run of `train --tune lora`, to merge into the checkpoint. Speech
        carries a watermark, the codec's or else that of `audio.marking` (docs/provenance.md), unless `watermark` is
        False, which is logged. Raises FileNotFoundError, OSError or ValueError with a one-line message.
        """
        path = locate_checkpoint(checkpoint)
        # Imported here: Orbax, which reads run directories, takes longer to import than everything else.
        from echotts.checkpoint.adapters import weights_hash
        from echotts.checkpoint.weights import load_weights

        loaded = load_weights(path, weights, adapter=adapter)
        found = locate_codec(path, loaded.facts.codec, loaded.config.latent_channels, codec, watermark)
        dtype = dtype or ("float32" if jax.default_backend() == "cpu" else loaded.config.compute_dtype)
        config = dataclasses.replace(loaded.config, compute_dtype=dtype)
        try:
            name = DEMO if checkpoint is None else Path(checkpoint).name
            tts = cls(Synthesizer(loaded.params, config, loaded.facts, found, name, loaded.duration, loaded.student))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if path == MODELS[DEMO]:
            tts._texts.readable, tts._texts.estimate = demo_text, demo_seconds
        tts._find_hash = functools.cache(lambda: weights_hash(load_weights(path, weights, adapter=adapter).params))
        tts._watermark = found.message
        tts._message = MESSAGE if watermark else None
        return tts

    def warm_up(self, duration: Duration = "auto", *, steps: int | None = None) -> None:
        """Compiles what `synthesize` and `stream` need for such durations, so that the first call is fast."""
        self._synthesizer.warm_up(as_duration(duration), self.sampler(steps=steps))

    @property
    def has_student(self) -> bool:
        """Whether the model has a student (docs/training.md), which then speaks by default."""
        return self._synthesizer.has_student

    def sampler(self, preset: str | None = None, **options: Any) -> SamplerConfig:
        """A sampler preset, by default that of the model, with `options` in place of its fields."""
        return sampler_config(preset or default_preset(self.has_student), **options)

    @property
    def raw_text(self) -> bool:
        """True: texts keep markup and emoji, for a model that was trained with them."""
        return self._texts.raw

    @raw_text.setter
    def raw_text(self, raw: bool) -> None:
        self._texts.raw = raw

    @property
    def fingerprint(self) -> str:
        """Identifies the model and its codec: all that speech depends on beside its text, voice and options."""
        codec = (self.codec.weights_hash, self._watermark, self._mark(speed=1.0))
        about = (self.config, self.facts.weights, self.facts.step, self.facts.tokenizer, codec)
        return hashlib.sha256(f"{about} {self._synthesizer.digest}".encode()).hexdigest()

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def frame_rate_hz(self) -> float:
        return self._synthesizer.frame_rate_hz

    @property
    def window_s(self) -> float:
        """The longest speech that the model was trained on, in seconds."""
        return self.limits.frames / self.frame_rate_hz

    @property
    def reference_window_s(self) -> float:
        """The longest reference that the model uses, in seconds."""
        return self.limits.reference_frames / self.frame_rate_hz

    def synthesize(
        self,
        text: str,
        speaker_ref: SpeakerReference | None = None,
        *,
        seed: int = 0,
        duration: Duration = "auto",
        speed: float = 1.0,
        preset: str | None = None,
        **options: Any,
    ) -> Speech:
        """Speaks `text` in the voice of `speaker_ref`, or in a voice from the seed. Deterministic for a given seed.

        Text that exceeds the model's window is spoken in pieces (`pieces`), which are joined. `duration` is the maximum
        per piece in seconds, or "auto" or an AutoDuration (length.py): as long as the text takes. Trailing silence is
        cropped. `speed` is from 0.5 to 2, and does not change the pitch. `preset` is a sampler preset ("draft",
        "balanced", "quality", Echo's, or "student", the default of models that have one); `options` replace its fields,
        such as steps=16, cfg_scale=2.0, text_scale, speaker_scale, guidance_interval or solver="ab2": see
        `flow.options.SamplerConfig`.
        Markup, emoji and control characters are left out (text/written.py), which is logged.
        Raises ValueError if the text has nothing to speak, or the reference is silent, too short or unreadable.
        """
        sampler = self.sampler(preset, **options)
        given = {"seed": seed, "duration": duration, "speed": speed, "sampler": sampler}
        return joined(list(self.pieces(text, speaker_ref, **given)))

    def pieces(
        self,
        text: str | Sequence[Piece],
        speaker_ref: SpeakerReference | None = None,
        *,
        seed: int = 0,
        duration: Duration = "auto",
        speed: float = 1.0,
        sampler: SamplerConfig | None = None,
        candidates: int = 1,
        choose: Choose | None = None,
        spoken: Sequence[Speech] = (),
    ) -> Iterator[Speech]:
        """Speaks a text of any length piece by piece: sentences that fit the window together, all in one voice.

        The concatenated pieces equal the result of `synthesize`: they include pauses, and have the loudness of the
        first. Without a reference the first piece is the voice of the others. Of each piece, `candidates` are
        synthesised in one batch, the first as without candidates, and `choose` takes one (None: that of median
        duration). `text` may be given as its pieces (`split`). `spoken` are pieces that an interrupted call yielded,
        after which this one goes on. Errors are raised before the first piece.
        """
        length, sampler = self._checked(duration, speed, [seed]), self._sampler(sampler)
        if candidates < 1:
            raise ValueError(f"candidates: {candidates}: give at least 1")
        chosen = choose or choose_by_duration
        pieces = self.split(text, duration) if isinstance(text, str) or not isinstance(text, Sequence) else text
        given = [self._given(piece.text) for piece in pieces]  # checks all pieces before the first is spoken
        voice = self._voice(speaker_ref)

        def speak(number: int, voice: Float[np.ndarray, "_m c"] | None) -> Speech:
            seeds = [seed + number + SEED_STEP * candidate for candidate in range(candidates)]
            prompts = [self._prompt(given[number], voice, one) for one in seeds]
            speeches = self._synthesizer.speak(prompts, length, sampler, candidates, speed)
            return speeches[chosen(pieces[number].text, speeches, prompts[0].voice) if candidates > 1 else 0]

        yield from speak_pieces(pieces, voice, speak, spoken, speed, self._mark(speed))

    def split(self, text: str, duration: Duration = "auto") -> list[Piece]:
        """The pieces in which `pieces` speaks a text. ValueError if it contains nothing to speak."""
        return self._texts.split(text, as_duration(duration))

    def stream(
        self,
        text: str | Iterable[str],
        speaker_ref: SpeakerReference | None = None,
        *,
        seed: int = 0,
        duration: Duration = "auto",
        speed: float = 1.0,
        sampler: SamplerConfig | None = None,
    ) -> Iterator[Speech]:
        """Speaks live: yields blocks of samples as soon as they are decoded, beginning with a short first piece.

        `text` is a text of any length, or its parts as they arrive, of which complete sentences are spoken at once. The
        blocks of a piece equal the piece decoded whole. Its latents are those of its first block; the others have none.
        Pieces have one voice, a pause after each and about the loudness of the first (see live.py). Errors in a string
        are raised before the first block.
        """
        length, sampler = self._checked(duration, speed, [seed]), self._sampler(sampler)
        voice = self._voice(speaker_ref)

        def utter(number: int, piece: Piece, voice: Float[np.ndarray, "_m c"] | None, whole: bool) -> Utterance:
            prompt = self._prompt(self._given(piece.text), voice, seed + number)
            return self._synthesizer.utter(prompt, length, sampler, speed, whole)

        pieces = self._texts.split_live(text, length)
        if isinstance(pieces, list) and len(pieces) == 1:
            said = utter(0, pieces[0], voice, True)
            blocks = marked_blocks(said.blocks, Marker(self.sample_rate, self._mark(speed)))
            for number, block in enumerate(blocks):
                yield Speech(block, self.sample_rate, said.latents[: 0 if number else None], self.name)
            return
        say = functools.partial(utter, whole=False)
        yield from live_blocks(pieces, voice, say, self.sample_rate, self.name, speed, self._mark(speed))

    def synthesize_batch(
        self,
        texts: Sequence[str],
        speaker_refs: Sequence[SpeakerReference | None] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        duration: Duration = "auto",
        speed: float = 1.0,
        sampler: SamplerConfig | None = None,
        rows: int = BATCH_ROWS,
    ) -> list[Speech]:
        """Synthesises many utterances, `rows` at a time, those with equal windows together.

        `seeds` default to 0, 1, 2, ...
        """
        if not texts:
            return []
        rows = min(rows, len(texts))
        refs = list(speaker_refs) if speaker_refs is not None else [None] * len(texts)
        seeds = list(seeds) if seeds is not None else list(range(len(texts)))
        if not len(texts) == len(refs) == len(seeds):
            raise ValueError(
                f"{len(texts)} texts, {len(refs)} references and {len(seeds)} seeds: give one for each text"
            )
        length, sampler = self._checked(duration, speed, seeds), self._sampler(sampler)
        given = [self._given(self._texts.written(text)) for text in texts]
        prompts = [self._prompt(*one) for one in zip(given, map(self._voice, refs), seeds, strict=True)]
        speeches = self._synthesizer.speak(prompts, length, sampler, rows, speed)
        return [
            dataclasses.replace(speech, samples=marked(speech.samples, self.sample_rate, self._mark(speed)))
            for speech in speeches
        ]

    def predict_duration(self, text: str, speaker_ref: SpeakerReference | None = None) -> float:
        """The seconds that a text of at most one piece takes, by the model's predictor or else by an estimate."""
        return self._synthesizer.expected_s([self._asked(text, speaker_ref)], rows=1)[0]

    def window_for(
        self, text: str, speaker_ref: SpeakerReference | None = None, *, duration: Duration = "auto"
    ) -> float:
        """The seconds of the window in which a text of at most one piece is synthesised first."""
        prompt = self._asked(text, speaker_ref)
        return self._synthesizer.windows([prompt], as_duration(duration), rows=1)[0] / self.frame_rate_hz

    def round_trip(self, samples: Samples, rate: int) -> Samples:
        """A recording encoded and decoded, at the codec's rate and same length: an upper bound of speech quality."""
        return references.round_trip(samples, rate, self.codec)

    def encode_reference(self, reference: SpeakerReference) -> Float[np.ndarray, "m c"]:
        """The latent of a voice, at most the model's reference window long; truncation is logged.

        Raises ValueError if a recording is unreadable, silent or shorter than half a second.
        """
        return references.encode_reference(reference, self.codec, self.limits.reference_frames, self._find_hash)

    def record_voice(self, recordings: Sequence[str | Path]) -> Voice:
        """A voice for `save_voice`: the best parts of recordings, as long as the model's reference window."""
        return references.record_voice(recordings, self.codec, self.limits.reference_frames)

    def _mark(self, speed: float) -> Sequence[int] | None:
        """The message to embed in decoded speech; None if the codec embedded one, unless stretching has damaged it."""
        return self._message if self._watermark is None or speed != 1.0 else None

    def _checked(self, duration: Duration, speed: float, seeds: Iterable[int]) -> float | AutoDuration:
        """The duration, checked like the other options; more seconds than the model's window are logged."""
        length = as_duration(duration)
        most_s = length.most_s if isinstance(length, AutoDuration) else length
        if most_s is not None and most_s > self.window_s:
            logger.warning("duration %.2f s exceeds the model's maximum of %.2f s at once", most_s, self.window_s)
        check_speed(speed)
        for seed in seeds:
            if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
                raise ValueError(f"seed: {seed!r}: give a whole number from 0 to {MAX_SEED}")
        return length

    def _sampler(self, sampler: SamplerConfig | None) -> SamplerConfig:
        """The sampler, by default that of the model. ValueError if it is for a student that the model does not have."""
        sampler = sampler or self.sampler()
        if not sampler.student:
            return sampler
        about = self.facts.student
        if about is None or not self.has_student:
            raise ValueError(f"{self.name}: has no student: make one with echotts train --distil_from")
        if not about.scales[0] <= sampler.cfg_scale <= about.scales[1]:
            raise ValueError(
                f"{self.name}: cfg_scale {sampler.cfg_scale:g}: its student was trained for {about.scales[0]:g} to "
                f"{about.scales[1]:g}"
            )
        return sampler

    def _voice(self, speaker_ref: SpeakerReference | None) -> Float[np.ndarray, "m c"] | None:
        return None if speaker_ref is None else self.encode_reference(speaker_ref)

    def _asked(self, text: str, speaker_ref: SpeakerReference | None) -> Prompt:
        return self._prompt(self._given(self._texts.written(text)), self._voice(speaker_ref), seed=0)

    def _given(self, text: str) -> tuple[Int[np.ndarray, " n"], float]:
        """Token ids of one piece, and its estimated seconds."""
        return self._texts.encode(text), self._texts.seconds(text)

    def _prompt(
        self, given: tuple[Int[np.ndarray, " n"], float], voice: Float[np.ndarray, "m c"] | None, seed: int
    ) -> Prompt:
        ids, estimate_s = given
        return Prompt(ids, None if voice is None else voice[: self.limits.reference_frames], seed, estimate_s)
