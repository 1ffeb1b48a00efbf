"""Latents scaled for the model and restored for the codec: the same everywhere they pass from one to the other."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echotts.checkpoint.export_file import save_export
from echotts.checkpoint.interop import save_published
from echotts.checkpoint.weights import load_weights
from echotts.data.format.info import DatasetInfo
from echotts.data.remote.dataset import open_dataset
from echotts.latents import FACT, UNSCALED, LatentScale, ScaleJson
from echotts.synthesis.synthesizer import Synthesizer
from echotts.training.inputs import open_inputs
from echotts.training.samples import Heldout
from echotts.training.start import check_facts
from tests import tiny_speaker
from tests.tiny_training import CHANNELS, TINY, with_sections, write_shards

PUBLISHED = LatentScale.of([-0.0074], [4.0102])
MEAN, STD = tuple(np.linspace(-1, 1, CHANNELS)), tuple(np.linspace(0.5, 4, CHANNELS))


@given(st.sampled_from([PUBLISHED, LatentScale.of(MEAN, STD), UNSCALED]), st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_normalising_and_restoring_gives_the_same_latent(scale: LatentScale, seed: int, frames: int) -> None:
    latent = np.random.default_rng(seed).normal(0, 4, (frames, CHANNELS)).astype(np.float32)
    np.testing.assert_allclose(scale.restore(scale.normalise(latent)), latent, atol=4e-6)
    again = LatentScale.from_json(scale.to_json(), CHANNELS)
    np.testing.assert_array_equal(again.normalise(latent), scale.normalise(latent))


def test_the_published_scalars_are_removed_and_restored() -> None:
    latent = np.array([[-0.0074, 4.0028, -4.0176]], np.float32)
    np.testing.assert_allclose(PUBLISHED.normalise(latent), [[0, 1, -1]], atol=1e-6)
    np.testing.assert_allclose(PUBLISHED.restore(np.array([[0, 1, -1]], np.float32)), latent, atol=1e-6)


def test_scalar_is_the_statistic_of_all_values_and_channel_that_of_each() -> None:
    rng = np.random.default_rng(0)
    latent = rng.normal(rng.normal(size=CHANNELS), 1 + rng.random(CHANNELS), (5000, CHANNELS))
    mean, std = latent.mean(axis=0).tolist(), latent.std(axis=0).tolist()
    scalar = LatentScale.measured("scalar", mean, std)
    np.testing.assert_allclose([scalar.mean[0], scalar.std[0]], [latent.mean(), latent.std()], rtol=1e-4)
    channel = LatentScale.measured("channel", mean, std).normalise(latent)
    np.testing.assert_allclose([channel.mean(axis=0), channel.std(axis=0)], [[0] * CHANNELS, [1] * CHANNELS], atol=1e-4)
    assert LatentScale.measured("none", mean, std) is UNSCALED
    with pytest.raises(ValueError, match="scalar needs the mean and standard deviation"):
        LatentScale.measured("scalar", (), ())


@pytest.mark.parametrize(
    "value",
    [{"mean": [1.0], "std": [0.0]}, {"mean": [1.0] * 3, "std": [1.0] * 3}, {"mean": [float("inf")], "std": [1.0]},
     {"mean": [], "std": []}, {"mean": [1.0], "std": [1.0, 2.0]}],
)  # fmt: skip
def test_a_scale_in_a_file_that_does_not_fit_is_refused(value: ScaleJson) -> None:
    with pytest.raises(ValueError, match=FACT):
        LatentScale.from_json(value, CHANNELS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder)
    np.save(folder / "silence.npy", np.full((3, CHANNELS), 0.25, np.float16))
    DatasetInfo(channels=CHANNELS, latent_mean=MEAN, latent_std=STD, hours=1.0).save(folder / "dataset.json")
    return folder


@pytest.mark.parametrize("name", ["scalar", "channel"])
def test_training_sees_scaled_latents_references_and_silence(data: Path, name: str) -> None:
    def first(scale: str):
        inputs = open_inputs(with_sections(TINY, data={"data": str(data), "heldout": str(data), "latent_scale": scale}))
        with inputs.stream as stream:
            return inputs, stream.next()[0]

    plain, raw = first("none")
    inputs, batch = first(name)
    scale = LatentScale.measured(name, MEAN, STD)  # type: ignore[arg-type]
    np.testing.assert_allclose(batch.latent, scale.normalise(raw.latent), atol=1e-6)
    present = raw.speaker_mask[..., None]
    np.testing.assert_allclose(
        batch.speaker_latent, np.where(present, scale.normalise(raw.speaker_latent), 0), atol=1e-6
    )
    assert inputs.facts == dataclasses.replace(plain.facts, latent_scale=scale.to_json())
    assert FACT not in plain.facts.to_dict()
    check_facts(inputs.facts, inputs.facts, "data")
    with pytest.raises(ValueError, match="mean and standard deviation of the latents differ from those"):
        check_facts(inputs.facts, plain.facts, "data")


def test_held_out_voices_are_restored_to_codec_latents(data: Path) -> None:
    heldout = Heldout.__new__(Heldout)
    heldout._scale = PUBLISHED
    with open_inputs(with_sections(TINY, data={"data": str(data)})).stream as stream:
        raw = stream.next()[0]
    scaled = dataclasses.replace(raw, speaker_latent=PUBLISHED.normalise(raw.speaker_latent))
    heldout._batches = [scaled]
    own = next(row for row in range(len(raw.latent)) if raw.speaker_mask[row].any())
    voice = raw.speaker_latent[own][raw.speaker_mask[own]]
    np.testing.assert_allclose(heldout.references(1)[0], voice, atol=1e-5)


def test_a_scale_without_statistics_is_refused_with_the_remedy(data: Path, tmp_path: Path) -> None:
    DatasetInfo(channels=CHANNELS).save(tmp_path / "dataset.json")
    write_shards(tmp_path)
    with pytest.raises(ValueError, match=r"unknown: `data prepare` writes them to dataset\.json"):
        open_inputs(with_sections(TINY, data={"data": str(tmp_path), "latent_scale": "channel"}))


def test_statistics_of_several_folders_are_pooled_by_their_hours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(2, 1, (3000, CHANNELS)), rng.normal(-1, 3, (1000, CHANNELS))]
    for number, part in enumerate(parts):
        write_shards(tmp_path / str(number))
        DatasetInfo(
            channels=CHANNELS,
            latent_mean=tuple(part.mean(axis=0)),
            latent_std=tuple(part.std(axis=0)),
            hours=len(part) / 1000,
            shards=(),
        ).save(tmp_path / str(number) / "dataset.json")
    info = open_dataset(f"{tmp_path}/0 + {tmp_path}/1").info
    whole = np.concatenate(parts)
    np.testing.assert_allclose(info.latent_mean, whole.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(info.latent_std, whole.std(axis=0), atol=1e-6)


@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_the_scale_is_in_every_export_and_speaking_undoes_it(tmp_path: Path, suffix: str) -> None:
    params, config = tiny_speaker.random_params(), tiny_speaker.CONFIG
    facts = dataclasses.replace(tiny_speaker.FACTS, latent_scale=PUBLISHED.to_json())
    path = tmp_path / f"model{suffix}"
    if suffix == ".pkl":
        save_published(path, params, step=1, samples_seen=1, latent_scale=facts.latent_scale)
    else:
        save_export(path, params, config, facts)
    assert load_weights(path).facts.latent_scale == facts.latent_scale

    class Scaled(tiny_speaker.LinearCodec):
        """The codec of a model that was trained on latents which are scaled already."""

        def encode(self, audio):
            return PUBLISHED.normalise(super().encode(audio))

        def decode(self, latents):
            return super().decode(PUBLISHED.restore(np.asarray(latents)))

        def silence_latent(self, frames):
            return PUBLISHED.normalise(super().silence_latent(frames))

    voice = (np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32), 8000)
    spoken = [
        tiny_speaker.EchoTTS(Synthesizer(params, config, about, codec)).synthesize("one two", voice, seed=3, steps=2)
        for about, codec in ((facts, tiny_speaker.LinearCodec()), (tiny_speaker.FACTS, Scaled()))
    ]
    np.testing.assert_allclose(spoken[0].latents, PUBLISHED.restore(spoken[1].latents), atol=1e-4)
    np.testing.assert_allclose(spoken[0].samples, spoken[1].samples, atol=1e-5)
