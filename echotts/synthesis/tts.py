"""Class EchoTTS: text to speech with a model, its codec and the sampler.

Everything is compiled once per bucket (batch.py). Conditions are encoded once per utterance.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from echotts.audio import Samples
from echotts.checkpoint.facts import Facts, Limits
from echotts.config import SEED_BITS, DataConfig, DtypeName, ModelConfig, to_dict
from echotts.flow.options import SamplerConfig, sampler_config
from echotts.flow.sampling import encode_conditions, sample
from echotts.latents import LatentCodec, LatentScale
from echotts.model import Params, build, computed_with
from echotts.model.fused import choose_attention, frame_tile
from echotts.synthesis import references
from echotts.synthesis.batch import CompileNotice, make_noise, padded_references, padded_tokens, rounded
from echotts.synthesis.candidates import SEED_STEP, Choose, choose_by_duration
from echotts.synthesis.demo import demo_seconds, demo_text
from echotts.synthesis.live import Utterance, cropped, live_blocks
from echotts.synthesis.locate import DEMO, locate_checkpoint
from echotts.synthesis.longform import joined, pieces_of, speak_pieces
from echotts.synthesis.references import CONTEXT_FRAMES, SpeakerReference, silence_of
from echotts.synthesis.speech import Speech, energy_end, find_end, find_start, silent_window
from echotts.synthesis.voices import Voice
from echotts.text.arriving import FIRST_S, live_pieces
from echotts.text.pace import estimated_seconds, has_sound
from echotts.text.sentences import Piece
from echotts.text.tokens import Tokenizer, tokenizer_from_json
from echotts.text.written import Written, spoken_words

DEFAULT_DURATION_S = 15.0
BATCH_ROWS = 16
TEXT_SHAPES, FRAME_SHAPES = 2, 4  # number of compiled sizes up to the largest; references have one
PUBLISHED_CODEC = "facebook/dacvae-watermarked"  # the codec of published checkpoints with PUBLISHED_CHANNELS
PUBLISHED_CHANNELS = 128
FILLED_SHARE = 0.9  # share of a window that a piece of a long text may fill by its estimated duration
LEAST_PIECE_S, LEAST_TEXT = 4.0, 8  # seconds and characters below which a text is not split because of its duration
SLOW_PACE = 1.75  # the window of a live piece is so many times its estimated duration
MAX_SEED = 2**SEED_BITS - 1
MOST_CHARACTERS = 10_000_000  # of one text: a week of speech

logger = logging.getLogger(__name__)


class EchoTTS:
    """A model with its codec, ready to synthesise. Create one with `load`."""

    def __init__(
        self, params: Params, config: ModelConfig, facts: Facts, codec: LatentCodec, name: str = "unnamed"
    ) -> None:
        """ValueError if the codec or the tokenizer does not match the model. `name` is written into files of speech."""
        if codec.latent_channels != config.latent_channels:
            raise ValueError(
                f"the model makes latents of {config.latent_channels} channels, but the codec {codec.codec_id} takes "
                f"{codec.latent_channels}: use the codec that the model was trained with"
            )
        self.tokenizer: Tokenizer = tokenizer_from_json(facts.tokenizer or {"kind": "byte"})
        if self.tokenizer.vocabulary > config.vocabulary:
            raise ValueError(
                f"the checkpoint's tokenizer has {self.tokenizer.vocabulary} ids, its model only {config.vocabulary}"
            )
        self.config = config
        self.codec = codec
        self.facts = facts
        self.name = name if facts.step is None else f"{name}, step {facts.step}"
        self.limits = facts.buckets or Limits.of(to_dict(DataConfig()))  # default: published training
        self.silence = np.asarray(silence_of(codec) if facts.silence is None else facts.silence, np.float32)  # (1, c)
        self.scale = LatentScale.from_json(facts.latent_scale, config.latent_channels)
        platform = jax.default_backend()
        hooks = {"attend": choose_attention(platform, config), "frame_tile": frame_tile(platform)}
        self._parameters_digest = _digest(params)
        params = computed_with(params, config.compute_dtype)
        self._model = build(dataclasses.replace(config, remat="none"), params, **hooks)
        self._announced = CompileNotice()
        self._watermark: Sequence[int] | None = None  # the message that the codec embeds
        self._readable: Callable[[str], str] = str  # applied to texts before encoding
        self._seconds: Callable[[str], float] = estimated_seconds
        self.raw_text = False  # True: texts keep markup and emoji, for a model that was trained with them

    def __repr__(self) -> str:
        millions = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self._model))) / 1e6
        return (
            f"EchoTTS({millions:.1f} M parameters, up to {self.window_s:.1f} s and {self.limits.tokens - 1} bytes of "
            f"text at once, codec {self.codec.codec_id} at {self.sample_rate} Hz, {self.facts.weights or '?'} "
            f"weights of step {'?' if self.facts.step is None else self.facts.step})"
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
        """Loads a run directory (also gs://), a checkpoint in one, .safetensors, .pkl or Hub id; None: the demo model.

        The codec is the one that the checkpoint names (published ones name none; the default is then
        facebook/dacvae-watermarked, from the local cache or the Hub); `codec` overrides it. `weights` ("ema" or "raw")
        selects weights of a run directory. The default `dtype` of computation is float32 on a CPU and the model's own
        elsewhere. `adapter` is a file or a run of `train --tune lora`, to merge into the checkpoint. If the codec has a
        watermark, speech carries it (docs/provenance.md) unless `watermark` is False, which is logged. Raises
        FileNotFoundError, OSError or ValueError with a one-line message.
        """
        path = locate_checkpoint(checkpoint)
        # Imported here: Orbax, which reads run directories, takes longer to import than everything else.
        from echotts.checkpoint.export import load_weights
        from echotts.codec.registry import find_codec

        loaded = load_weights(path, weights, adapter=adapter)
        trained = loaded.facts.codec
        if codec is None and not trained.id and not trained.weights_hash:
            if loaded.config.latent_channels != PUBLISHED_CHANNELS:
                raise ValueError(
                    f"{path}: does not name the codec of its latents of {loaded.config.latent_channels} channels: "
                    "give one with --codec"
                )
            logger.info("%s names no codec: using %s (override with --codec)", path, PUBLISHED_CODEC)
            codec = PUBLISHED_CODEC
        found = find_codec(trained.id, trained.weights_hash, override=codec)
        if found.has_watermark and watermark:
            found = found.watermarked()
        elif found.has_watermark:
            logger.warning("watermark off: speech carries no mark, only the tags of its file say that it is synthetic")
        dtype = dtype or ("float32" if jax.default_backend() == "cpu" else loaded.config.compute_dtype)
        config = dataclasses.replace(loaded.config, compute_dtype=dtype)
        try:
            tts = cls(loaded.params, config, loaded.facts, found, DEMO if checkpoint is None else Path(checkpoint).name)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if checkpoint in (None, DEMO):
            tts._readable, tts._seconds = demo_text, demo_seconds
        tts._watermark = found.message
        return tts

    def warm_up(self, duration: float = DEFAULT_DURATION_S, *, steps: int = 32) -> None:
        """Compiles what `synthesize` and `stream` need for up to `duration` seconds, so that the first call is fast."""
        sampler, longest, most = SamplerConfig(steps=steps), self.limits.tokens, self._most_frames(duration)
        for tokens in {rounded(1, longest, TEXT_SHAPES), longest}:
            for frames in {self._live_frames(FIRST_S, most), most}:
                self._speak([np.zeros(tokens, np.int32)], [None], [0], frames, sampler, rows=1)

    @property
    def fingerprint(self) -> str:
        """Identifies the model and its codec: all that speech depends on beside its text, voice and options."""
        codec = (self.codec.weights_hash, self._watermark)
        about = (self.config, self.facts.weights, self.facts.step, self.facts.tokenizer, codec)
        return hashlib.sha256(f"{about} {self._parameters_digest}".encode()).hexdigest()

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def frame_rate_hz(self) -> float:
        return self.codec.sample_rate / self.codec.hop_length

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
        duration: float = DEFAULT_DURATION_S,
        preset: str = "quality",
        **options: Any,
    ) -> Speech:
        """Speaks `text` in the voice of `speaker_ref`, or in a voice from the seed. Deterministic for a given seed.

        Text that exceeds the model's window is spoken in pieces (`pieces`), which are joined. `duration` is the maximum
        per piece in seconds; trailing silence is cropped. `preset` is a sampler preset ("draft", "balanced", "quality",
        Echo's); `options` replace its fields, such as steps=16, cfg_scale=2.0, text_scale, speaker_scale,
        guidance_interval or solver="ab2": see `flow.options.SamplerConfig`.
        Markup, emoji and control characters are left out (text/written.py), which is logged.
        Raises ValueError if the text has nothing to speak, or the reference is silent, too short or unreadable.
        """
        sampler = sampler_config(preset, **options)
        return joined(list(self.pieces(text, speaker_ref, seed=seed, duration=duration, sampler=sampler)))

    def pieces(
        self,
        text: str | Sequence[Piece],
        speaker_ref: SpeakerReference | None = None,
        *,
        seed: int = 0,
        duration: float = DEFAULT_DURATION_S,
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
        most, sampler = self._most_frames(duration), sampler or SamplerConfig()
        _check_seed(seed)
        if candidates < 1:
            raise ValueError(f"candidates: {candidates}: give at least 1")
        chosen = choose or choose_by_duration
        pieces = self.split(text, duration) if isinstance(text, str) or not isinstance(text, Sequence) else text
        ids = [self._encode_text(piece.text) for piece in pieces]  # checks all pieces before the first is spoken
        voice = self.encode_reference(speaker_ref) if speaker_ref is not None else None

        def speak(number: int, voice: Float[np.ndarray, "_m c"] | None) -> Speech:
            voice = None if voice is None else voice[: self.limits.reference_frames]
            seeds = [seed + number + SEED_STEP * candidate for candidate in range(candidates)]
            given = [ids[number]] * candidates, [voice] * candidates, seeds
            speeches = self._speak(*given, most, sampler, rows=candidates)
            return speeches[chosen(pieces[number].text, speeches, voice) if candidates > 1 else 0]

        yield from speak_pieces(pieces, voice, speak, spoken)

    def split(self, text: str, duration: float = DEFAULT_DURATION_S) -> list[Piece]:
        """The pieces in which `pieces` speaks a text. ValueError if it contains nothing to speak."""
        text, longest_s = self._written(text), self._longest_piece_s(duration)
        return pieces_of(text, lambda piece: self._fits(piece, longest_s))

    def stream(
        self,
        text: str | Iterable[str],
        speaker_ref: SpeakerReference | None = None,
        *,
        seed: int = 0,
        duration: float = DEFAULT_DURATION_S,
        sampler: SamplerConfig | None = None,
    ) -> Iterator[Speech]:
        """Speaks live: yields blocks of samples as soon as they are decoded, beginning with a short first piece.

        `text` is a text of any length, or its parts as they arrive, of which complete sentences are spoken at once. The
        blocks of a piece equal the piece decoded whole. Its latents are those of its first block; the others have none.
        Pieces have one voice, a pause after each and about the loudness of the first (see live.py). Errors in a string
        are raised before the first block.
        """
        most, sampler = self._most_frames(duration), sampler or SamplerConfig()
        _check_seed(seed)
        voice = self.encode_reference(speaker_ref) if speaker_ref is not None else None

        def utter(number: int, piece: Piece, voice: Float[np.ndarray, "_m c"] | None, whole: bool) -> Utterance:
            voice = None if voice is None else voice[: self.limits.reference_frames]
            ids = self._encode_text(piece.text)
            given = [ids], [voice], [seed + number]
            short = self._live_frames(self._seconds(self._readable(piece.text)), most)
            latents = next(self._latents(*given, short, sampler, rows=1))
            if short < most and find_end(latents, self.silence, silent_window(self.limits.frames)) is None:
                latents = next(self._latents(*given, most, sampler, rows=1))  # slower than estimated: not cut off
            return self._utterance(latents, whole)

        if isinstance(text, str) or not isinstance(text, Iterable):
            text = self._written(text)
        pieces = live_pieces(text, self._fits, self._longest_piece_s(duration), self._words_of_parts())
        if isinstance(pieces, list):
            for piece in pieces:
                self._encode_text(piece.text)  # checks all pieces before the first is spoken
        if isinstance(pieces, list) and len(pieces) == 1:
            said = utter(0, pieces[0], voice, True)
            for number, block in enumerate(said.blocks):
                yield Speech(block, self.sample_rate, said.latents[: 0 if number else None], self.name)
            return
        say = functools.partial(utter, whole=False)
        yield from live_blocks(pieces, voice, say, self.sample_rate, self.name)

    def synthesize_batch(
        self,
        texts: Sequence[str],
        speaker_refs: Sequence[SpeakerReference | None] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        duration: float = DEFAULT_DURATION_S,
        sampler: SamplerConfig | None = None,
        rows: int = BATCH_ROWS,
    ) -> list[Speech]:
        """Synthesises many utterances, `rows` at a time in one compiled shape. `seeds` default to 0, 1, 2, ..."""
        if not texts:
            return []
        rows = min(rows, len(texts))
        refs = list(speaker_refs) if speaker_refs is not None else [None] * len(texts)
        seeds = list(seeds) if seeds is not None else list(range(len(texts)))
        if not len(texts) == len(refs) == len(seeds):
            raise ValueError(
                f"{len(texts)} texts, {len(refs)} references and {len(seeds)} seeds: give one for each text"
            )
        most = self._most_frames(duration)
        for seed in seeds:
            _check_seed(seed)
        ids = [self._encode_text(self._written(text)) for text in texts]
        voices = [self.encode_reference(ref) if ref is not None else None for ref in refs]
        return self._speak(ids, voices, seeds, most, sampler or SamplerConfig(), rows)

    def _speak(
        self,
        ids: Sequence[Int[np.ndarray, " _n"]],
        voices: Sequence[Float[np.ndarray, "_m c"] | None],
        seeds: Sequence[int],
        most: int,
        sampler: SamplerConfig,
        rows: int,
    ) -> list[Speech]:
        """Synthesises at most `most` frames from token ids and codec latents of voices, in one compiled shape."""
        return [self._finish(latents) for latents in self._latents(ids, voices, seeds, most, sampler, rows)]

    def _latents(
        self,
        ids: Sequence[Int[np.ndarray, " _n"]],
        voices: Sequence[Float[np.ndarray, "_m c"] | None],
        seeds: Sequence[int],
        most: int,
        sampler: SamplerConfig,
        rows: int,
    ) -> Iterator[Float[np.ndarray, "t c"]]:
        """Samples latents of `most` frames, including the silence after speech, batch by batch."""
        tokens = rounded(max(map(len, ids)), self.limits.tokens, TEXT_SHAPES)
        reference_frames = -(-self.limits.reference_frames // self.config.patch) * self.config.patch
        frames = rounded(most, self.limits.frames, FRAME_SHAPES)
        voices = [None if voice is None else self.scale.normalise(voice) for voice in voices]
        for start in range(0, len(ids), rows):
            chosen = [min(row, len(ids) - 1) for row in range(start, start + rows)]
            text = padded_tokens([ids[i] for i in chosen], tokens)
            speaker = padded_references([voices[i] for i in chosen], reference_frames, self.config.latent_channels)
            noise = np.stack([make_noise(seeds[i], frames, self.config.latent_channels) for i in chosen])
            with self._announced(rows, tokens, frames / self.frame_rate_hz):
                conditions = encode_conditions(self._model, *map(jnp.asarray, (*text, *speaker)))
                latents = self.scale.restore(np.asarray(sample(self._model, conditions, jnp.asarray(noise), sampler)))
            yield from latents[: len(ids) - start, :most]

    def round_trip(self, samples: Samples, rate: int) -> Samples:
        """A recording encoded and decoded, at the codec's rate and same length: an upper bound of speech quality."""
        return references.round_trip(samples, rate, self.codec)

    def encode_reference(self, reference: SpeakerReference) -> Float[np.ndarray, "m c"]:
        """The latent of a voice, at most the model's reference window long; truncation is logged.

        Raises ValueError if a recording is unreadable, silent or shorter than half a second.
        """
        return references.encode_reference(reference, self.codec, self.limits.reference_frames)

    def record_voice(self, recordings: Sequence[str | Path]) -> Voice:
        """A voice for `save_voice`: the best parts of recordings, as long as the model's reference window."""
        return references.record_voice(recordings, self.codec, self.limits.reference_frames)

    def _fits(self, text: str, longest_s: float) -> bool:
        """Whether a text fits one window: by its number of tokens and its estimated duration."""
        if not has_sound(text):
            return True
        readable = self._readable(text)
        if len(self.tokenizer.encode(readable)) > self.limits.tokens:
            return False
        return len(text) <= LEAST_TEXT or self._seconds(readable) <= longest_s

    def _written(self, text: str) -> str:
        """The text without what is not spoken, which is logged. ValueError if nothing is left."""
        _check_text(text)
        words = self._words_of_parts()(text)
        if not has_sound(words):
            raise ValueError(f"the text {text.strip()[:40]!r} contains no letter or digit to speak")
        return words

    def _words_of_parts(self) -> Callable[[str], str]:
        """What is spoken of the parts of one text, in order; the first part with anything else is logged."""
        notices: list[str] = []

        def words(part: str) -> str:
            written = Written(part) if self.raw_text else spoken_words(part)
            if written.notice and not notices:
                notices.append(written.notice)
                logger.warning("text: left out %s: see docs/inference.md", written.notice)
            return written.words

        return words

    def _encode_text(self, text: str) -> Int[np.ndarray, " n"]:
        line = " ".join(text.split()) if "\n" in text else text
        return self.tokenizer.encode(self._readable(line), self.limits.tokens)

    def _longest_piece_s(self, duration: float) -> float:
        """The estimated duration up to which text is spoken at once."""
        return FILLED_SHARE * min(self.window_s, max(duration, LEAST_PIECE_S))

    def _live_frames(self, seconds: float, most: int) -> int:
        """The window of a live piece of an estimated duration: that of short pieces if it is enough, or `most`."""
        short = rounded(round(SLOW_PACE * FIRST_S * self.frame_rate_hz), self.limits.frames, FRAME_SHAPES)
        return min(short, most) if SLOW_PACE * seconds * self.frame_rate_hz <= short else most

    def _most_frames(self, duration: float) -> int:
        """The frames of `duration`, at most the model's window; a reduction of an explicit duration is logged."""
        if not 0 < duration < np.inf:
            raise ValueError(f"duration {duration} s: give the maximum duration in seconds, above 0")
        if duration > self.window_s and duration != DEFAULT_DURATION_S:
            logger.warning("duration %.2f s exceeds the model's maximum of %.2f s at once", duration, self.window_s)
        return min(max(1, round(duration * self.frame_rate_hz)), self.limits.frames)

    def _utterance(self, latents: Float[np.ndarray, "t c"], whole: bool) -> Utterance:
        """Decodes latents block by block without their silent tail and, unless `whole`, without their silent start."""
        end = find_end(latents, self.silence, silent_window(self.limits.frames))
        if end is None:  # found by energy, which needs all samples
            speech = self._finish(latents)
            return Utterance(speech.latents, iter([speech.samples]), len(speech.samples))
        hop = self.codec.hop_length
        first = 0 if whole else find_start(latents, self.silence) * hop
        decoded = self.codec.decode_blocks(latents[None, : end + CONTEXT_FRAMES])
        return Utterance(latents[:end], cropped(decoded, first, end * hop), end * hop - first)

    def _finish(self, latents: Float[np.ndarray, "t c"]) -> Speech:
        """Crops the silent tail, decodes with the context that a codec frame needs, and crops the samples alike."""
        end = find_end(latents, self.silence, silent_window(self.limits.frames))
        known = end is not None
        decoded = latents if end is None else latents[: end + CONTEXT_FRAMES]
        samples = np.asarray(self.codec.decode(decoded[None]), np.float32)[0]
        if not known:
            end = energy_end(samples, self.sample_rate, self.codec.hop_length)
        return Speech(samples[: end * self.codec.hop_length], self.sample_rate, latents[:end], self.name)


def _digest(params: Params) -> str:
    """Identifies parameters; of large arrays only the first values are read."""
    read = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        read.update(np.asarray(leaf).reshape(-1)[:64].tobytes())
    return read.hexdigest()


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f'text: {text!r} is {type(text).__name__}: give a string, as in "four two"')
    if not text.strip():
        raise ValueError("the text is empty")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the text has {len(text):,} characters, at most {MOST_CHARACTERS:,} are spoken: split it")


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed: {seed!r}: give a whole number from 0 to {MAX_SEED}")
