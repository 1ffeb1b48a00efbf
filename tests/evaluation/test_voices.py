"""Speaker embeddings: Resemblyzer's values, and distinct voices."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest

from echotts.data.prepare.demo import corpus_path
from echotts.evaluation import voices
from echotts.evaluation.clips import RATE_HZ, read_clips
from echotts.evaluation.voices import VoiceEncoder, centroids, nearest_voice

GOLDEN = Path(__file__).parent.parent / "golden"

if importlib.util.find_spec("resemblyzer") is None:
    pytest.skip(f"the weights are missing: {voices.INSTALL_HINT}", allow_module_level=True)


@pytest.fixture(scope="module")
def encoder():
    return VoiceEncoder()


def signal(seconds, seed):
    """Twenty harmonics with vibrato and tremolo under a little noise, peak 0.12."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(100 + 40 * seed + 10 * np.sin(2 * np.pi * 3 * time_s)) / RATE_HZ
    wave = sum(np.sin(k * phase) / k for k in range(1, 20)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_s))
    wave = wave + 0.05 * rng.standard_normal(len(time_s))
    return (0.12 * wave / np.abs(wave).max()).astype(np.float32)


@pytest.mark.parametrize(("name", "seconds", "seed"), [("short", 0.9, 1), ("long", 3.1, 2)])
def test_embeddings_are_those_of_the_package(encoder, name, seconds, seed):
    """Golden: VoiceEncoder.embed_utterance of Resemblyzer 0.1.4 on torch, with librosa 0.11."""
    golden = np.load(GOLDEN / "voice_embedding.npz")[name]
    assert np.abs(encoder.embed([(signal(seconds, seed), RATE_HZ)])[0] - golden).max() < 1e-5


def test_recordings_are_nearest_to_their_own_voice(encoder):
    known = read_clips(corpus_path(), "train", 100)
    heldout = read_clips(corpus_path(), "heldout", 25)
    embedded = encoder.embed([(clip.samples, RATE_HZ) for clip in known])
    centres = centroids(embedded, [clip.speaker for clip in known])
    assert set(centres) == {"us", "f2", "m1", "klatt2", "f5"}
    found = [nearest_voice(e, centres) for e in encoder.embed([(clip.samples, RATE_HZ) for clip in heldout])]
    assert sum(name == clip.speaker for name, clip in zip(found, heldout, strict=True)) >= 20


def test_one_recording_or_many_give_the_same_embedding_and_silence_gives_none(encoder):
    recordings = [(signal(1.0 + i, i), RATE_HZ) for i in range(3)]
    together = encoder.embed([*recordings, (np.zeros(RATE_HZ, np.float32), RATE_HZ)])
    assert np.abs(together[1] - encoder.embed([recordings[1]])[0]).max() < 1e-5
    assert nearest_voice(together[3], {"a": together[0]}) is None


def test_another_weights_file_is_refused_before_it_is_unpickled(tmp_path):
    path = tmp_path / "pretrained.pt"
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match=r"not the weights file of Resemblyzer 0\.1\.4"):
        VoiceEncoder(path)


def test_weights_that_reference_code_are_rejected_naming_it(tmp_path, monkeypatch):
    path = tmp_path / "pretrained.pt"
    path.write_bytes(pickle.dumps(print))
    monkeypatch.setattr(voices, "sha256_file", lambda _: voices.WEIGHTS_SHA256)
    with pytest.raises(ValueError, match=r"builtins\.print"):
        VoiceEncoder(path)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=voices.INSTALL_HINT):
        voices.find_weights()
