"""Speech samples during training: synthesises the configured sentences with the current weights."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from echotts.audio import read_audio
from echotts.checkpoint.weights import Weights
from echotts.codec import Codec, find_codec, load_codec
from echotts.config import HELDOUT_VOICES, Config
from echotts.data.remote.dataset import open_dataset
from echotts.data.remote.sources import scheme_of, split_parts
from echotts.evaluation.asr import Heard, listen, load_recogniser
from echotts.evaluation.voices import VoiceEncoder
from echotts.synthesis import EchoTTS, Speech
from echotts.synthesis.length import DEFAULT_PIECE_S
from echotts.synthesis.references import check_recording
from echotts.synthesis.synthesizer import Synthesizer

Voice = Path | np.ndarray
"""A path to a recording, or its (m, c) latent."""


@dataclass(frozen=True)
class Spoken:
    """A sentence as speech, and if there are any its reference voice as the model gets it, and what was measured."""

    speech: Speech
    reference: Speech | None = None
    heard: Heard | None = None
    similarity: float | None = None  # cosine of the embeddings of speech and reference


def make_speaker(config: Config) -> Callable[[Weights, str, int, Voice | None], Spoken] | None:
    """A function that synthesises `run.sentences` during training; None if there are none.

    The codec is the one of the data: `run.codec` if its weights match, otherwise found by id and hash. For local data
    it is looked up here, so that a run does not fail at its first sample; remote data are opened only by the run
    itself. The recordings in `run.sample_references` are checked and the recogniser `run.eval_asr` is loaded here, too;
    with it, voices are compared if Resemblyzer is installed. Raises OSError, ValueError or ModuleNotFoundError.
    """
    if not config.run.sentences:
        return None
    if config.run.sample_references != (HELDOUT_VOICES,):
        for path in config.run.sample_references:
            check_recording(path)
    recogniser = load_recogniser(config.run.eval_asr) if config.run.eval_asr else None
    if recogniser is not None:
        for sentence in config.run.sentences:
            recogniser.normalise(sentence)  # raises for a sentence that this recogniser cannot score
    encoder = VoiceEncoder() if recogniser is not None and find_spec("resemblyzer") is not None else None
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
        tts = EchoTTS(Synthesizer(weights.params, weights.config, weights.facts, codec, student=weights.student))
        one_window_s = min(DEFAULT_PIECE_S, tts.window_s)  # compiled once; a model in training may not end
        speech = tts.synthesize(sentence, voice, seed=seed, duration=one_window_s)
        heard = listen(recogniser, sentence, speech.samples, speech.sample_rate) if recogniser else None
        if voice is None:
            return Spoken(speech, heard=heard)
        latent = tts.encode_reference(voice)
        if isinstance(voice, np.ndarray):
            samples = np.asarray(codec.decode(latent[None]), np.float32)[0]
        else:
            samples = read_audio(voice, tts.sample_rate, limit_s=tts.reference_window_s)
        similarity = None
        if encoder is not None:
            one, other = encoder.embed([(speech.samples, speech.sample_rate), (samples, tts.sample_rate)])
            similarity = float(one @ other)
        return Spoken(speech, Speech(samples, tts.sample_rate, latent, model=None), heard, similarity)

    return speak
