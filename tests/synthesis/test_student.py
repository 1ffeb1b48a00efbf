"""Speech of a student: its defaults, the same model without it, and options that it does not have."""

import dataclasses

import numpy as np
import pytest

from echotts import EchoTTS
from echotts.checkpoint.facts import StudentFacts
from echotts.flow.options import SamplerConfig, sampler_config
from echotts.model.parameters import unflatten
from echotts.model.student import student_shapes
from echotts.synthesis.synthesizer import Synthesizer
from tests.tiny_speaker import CONFIG, FACTS, LinearCodec, random_params, tiny_tts

ABOUT = StudentFacts(rank=2, scales=(0.0, 4.0), interval=(0.0, 1.0))
DURATION = 0.64  # seconds, one window


@pytest.fixture(scope="module")
def plain():
    return tiny_tts()


@pytest.fixture(scope="module")
def tts():
    rng = np.random.default_rng(5)
    shapes = student_shapes(CONFIG, ABOUT.rank)
    student = unflatten({path: 0.2 * rng.standard_normal(leaf.shape, np.float32) for path, leaf in shapes.items()})
    facts = dataclasses.replace(FACTS, student=ABOUT)
    return EchoTTS(Synthesizer(random_params(), CONFIG, facts, LinearCodec(), student=student))


def test_a_student_speaks_by_default_in_four_steps_and_its_model_as_without_it(tts, plain):
    spoken = tts.synthesize("one two", seed=3, duration=DURATION)
    assert tts.sampler() == SamplerConfig(steps=4, student=True)
    wanted = tts.synthesize("one two", seed=3, duration=DURATION, preset="student", steps=4, cfg_scale=3.0)
    np.testing.assert_array_equal(spoken.latents, wanted.latents)
    for options in ({"steps": 2}, {"cfg_scale": 1.0}):
        other = tts.synthesize("one two", seed=3, duration=DURATION, **options)
        assert np.abs(other.latents - spoken.latents).max() > 1e-3
    usual = plain.synthesize("one two", seed=3, duration=DURATION, steps=2)
    base = tts.synthesize("one two", seed=3, duration=DURATION, preset="quality", steps=2)
    np.testing.assert_array_equal(base.latents, usual.latents)


def test_batches_pieces_and_streams_are_spoken_by_the_student_too(tts):
    spoken = tts.synthesize("one two", seed=3, duration=DURATION)
    (batched,) = tts.synthesize_batch(["one two"], seeds=[3], duration=DURATION)
    (piece,) = tts.pieces("one two", seed=3, duration=DURATION, candidates=1)
    streamed = np.concatenate([block.samples for block in tts.stream("one two", seed=3, duration=DURATION)])
    np.testing.assert_allclose(batched.latents, spoken.latents, atol=1e-5)
    np.testing.assert_array_equal(piece.latents, spoken.latents)
    np.testing.assert_allclose(streamed, spoken.samples, atol=1e-5)


def test_what_a_student_cannot_do_is_one_line(tts, plain):
    for options, said in (
        ({"text_scale": 3.0}, 'text_scale: a student has guidance and steps in its weights.*preset "quality"'),
        ({"guidance_interval": (0.5, 1.0)}, "interval: a student has"),
        ({"solver": "ab2"}, "solver: a student has"),
        ({"steps": 5}, "steps 5: a student takes 1, 2, 4, 8, 16 or 32"),
        ({"steps": 64}, "steps 64: a student takes"),
        ({"cfg_scale": 5.0}, "cfg_scale 5: its student was trained for 0 to 4"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            tts.synthesize("one", duration=DURATION, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="has no student: make one with echotts train --distil_from"):
        plain.synthesize("one", duration=DURATION, preset="student")


def test_a_student_changes_the_fingerprint_of_a_model_and_not_the_description_of_other_samplers(tts, plain):
    assert tts.fingerprint != plain.fingerprint
    assert "student" not in repr(sampler_config("quality"))
