"""Speech samples of a running training: what speaks the configured sentences with the weights of the moment."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echotts.audio import read_audio
from echotts.checkpoint.export import Weights
from echotts.codec import Codec, find_codec, load_codec
from echotts.config import HELDOUT_VOICES, Config
from echotts.data.remote.dataset import open_dataset
from echotts.data.remote.sources import scheme_of, split_parts
from echotts.evaluation.ear import Heard, listen, load_ear
from echotts.synthesis import EchoTTS, Speech
from echotts.synthesis.references import check_recording

Voice = Path | np.ndarray
"""A recording, or the (m, c) latent of one."""


@dataclass(frozen=True)
class Spoken:
    """A sentence as speech, the voice that it was given, if any, as the model hears it, and what an ear made of it."""

    speech: Speech
    reference: Speech | None = None
    heard: Heard | None = None


def make_speaker(config: Config) -> Callable[[Weights, str, int, Voice | None], Spoken] | None:
    """What speaks `run.sentences` during training; None where there are none.

    The codec is the data's: `run.codec` if it has its weights, else found by id and hash. For local data it is looked
    up here, so that a run does not fail at its first sample; remote data are opened once, by the run. The recordings
    of `run.sample_references` are checked here, too, and the recogniser `run.eval_asr` is loaded. Raises OSError,
    ValueError or ModuleNotFoundError.
    """
    if not config.run.sentences:
        return None
    if config.run.sample_references != (HELDOUT_VOICES,):
        for path in config.run.sample_references:
            check_recording(path)
    ear = load_ear(config.run.eval_asr) if config.run.eval_asr else None
    if ear is not None:
        for sentence in config.run.sentences:
            ear.normalise(sentence)  # raises for one that this ear cannot judge
    named = load_codec(config.run.codec) if config.run.codec else None

    @functools.cache
    def codec_of(codec_id: str | None, weights_hash: str | None) -> Codec:
        if named is not None and weights_hash in (None, named.weights_hash):
            return named
        return find_codec(codec_id, weights_hash)

    if not any(scheme_of(part.spec) for part in split_parts(config.data.data)):
        info = open_dataset(config.data.data).info
        codec_of(info.codec_id or config.run.codec or None, info.weights_hash)

    def speak(weights: Weights, sentence: str, seed: int, voice: Voice | None) -> Spoken:
        trained = weights.facts.codec
        codec = codec_of(trained.id, trained.weights_hash)
        tts = EchoTTS(weights.params, weights.config, weights.facts, codec)
        speech = tts.synthesize(sentence, voice, seed=seed)
        heard = listen(ear, sentence, speech.samples, speech.sample_rate) if ear else None
        if voice is None:
            return Spoken(speech, heard=heard)
        latent = tts.encode_reference(voice)
        if isinstance(voice, np.ndarray):
            samples = np.asarray(codec.decode(latent[None]), np.float32)[0]
        else:
            samples = read_audio(voice, tts.sample_rate, limit_s=tts.reference_window_s)
        return Spoken(speech, Speech(samples, tts.sample_rate, latent), heard)

    return speak
