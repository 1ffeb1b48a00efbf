"""Speech samples and their voices on disk, as the dashboard expects them."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from echotts.checkpoint.facts import Facts
from echotts.checkpoint.weights import Weights
from echotts.evaluation.asr import Heard
from echotts.latents import UNSCALED
from echotts.monitor.folders import open_folder
from echotts.monitor.samples import Samples
from echotts.rundir.metrics import METRICS
from echotts.training.samples import Heldout, choose_voices, write_samples
from tests.tiny_training import TINY, Spoken, random_batch, with_sections


class Sound:
    def __init__(self, text):
        self.text = text

    def save(self, path):
        path.write_text(self.text)


def speak(weights, sentence, seed, voice):
    return Spoken(Sound(f"{sentence} {seed}"), None if voice is None else Sound(str(voice)))


NO_WEIGHTS = Weights({}, TINY.model, Facts())


def test_voices_take_turns_and_the_dashboard_finds_each_beside_its_sentence(tmp_path):
    folder, heard = write_samples(tmp_path, 5, ("a", "b", "c"), speak, NO_WEIGHTS, [Path("x.mp3"), Path("y.mp3")])
    assert heard == {}
    assert sorted(path.name for path in folder.iterdir()) == [
        *("00_a.wav", "01_b.wav", "02_c.wav"),
        *("reference_00.wav", "reference_01.wav", "sentences.json"),
    ]
    assert (folder / "01_b.wav").read_text() == "b 1"
    samples = Samples(open_folder(str(tmp_path)))
    [(step, items)] = samples.steps()
    assert step == 5
    heard = {item.text: samples.audio(samples.find(item.reference_id)) for item in items}
    assert heard == {"a": b"x.mp3", "b": b"y.mp3", "c": b"x.mp3"}


def test_without_voices_the_texts_stand_alone(tmp_path):
    folder, _ = write_samples(tmp_path, 5, ("a",), speak, NO_WEIGHTS)
    assert json.loads((folder / "sentences.json").read_text()) == {"00_a.wav": "a"}


def test_transcripts_give_a_metric_and_are_shown_with_each_sentence_on_the_dashboard(tmp_path):
    told = {"one two": Heard(1, 2, 3, 7, "one too"), "three": Heard(0, 1, 0, 5, "three")}

    def speak_to_an_ear(weights, sentence, seed, voice):
        return Spoken(Sound(sentence), Sound("voice") if seed == 0 else None, told[sentence])

    _, metrics = write_samples(tmp_path, 5, tuple(told), speak_to_an_ear, NO_WEIGHTS, [Path("x.mp3")])
    assert metrics == {"speech/word_error_rate": 1 / 3, "speech/character_error_rate": 0.25}
    assert set(metrics) <= set(METRICS)
    [(_, items)] = Samples(open_folder(str(tmp_path))).steps()
    assert {item.text: item.heard for item in items} == {"one two": "one too", "three": "three"}
    assert [item.reference_id is not None for item in items] == [True, False]


def test_voices_are_recordings_or_those_of_the_heldout_samples():
    heldout = Heldout.__new__(Heldout)
    batch = random_batch()
    mute = dataclasses.replace(batch, speaker_mask=np.zeros_like(batch.speaker_mask))
    heldout._batches, heldout._scale = [mute, batch], UNSCALED
    files = with_sections(TINY, run={"sample_references": ("~/x.wav", "y.wav"), "sentences": ("a",)})
    assert choose_voices(files.run, None) == [Path.home() / "x.wav", Path("y.wav")]
    run = with_sections(TINY, data={"heldout": "h"}, run={"sentences": ("a", "b")})
    assert choose_voices(run.run, None) == []
    run = with_sections(run, run={"sample_references": ("heldout",)})
    found = choose_voices(run.run, heldout)
    assert len(found) == 2
    for row, voice in enumerate(found):
        np.testing.assert_array_equal(voice, batch.speaker_latent[row][batch.speaker_mask[row]])
