"""Complete runs on tiny shards: the loss falls, a resumed run is identical, and a bad one stops."""

import dataclasses
import json
import logging
import os
import re
import signal
import time

import jax
import numpy as np
import pytest

from echotts.checkpoint import export_file, interop
from echotts.checkpoint.agreement import ConfigDiffersError
from echotts.checkpoint.contents import read_meta, step_folders
from echotts.checkpoint.export import export
from echotts.checkpoint.facts import CodecFacts, Facts
from echotts.checkpoint.guard import NonFiniteError
from echotts.checkpoint.weights import load_run
from echotts.config import Bucket, preset
from echotts.latents import LatentScale
from echotts.model.parameters import flatten
from echotts.multihost.runtime import StopSignal
from echotts.rundir import metrics
from echotts.rundir.claim import RunInUseError, claimed
from echotts.rundir.layout import CHECKPOINTS
from echotts.text.tokens import SentencePieceTokenizer, tokenizer_from_json
from echotts.training import feed, report
from echotts.training.flops import training_flops
from echotts.training.inputs import open_inputs
from echotts.training.loop import Result, train
from echotts.training.start import check_facts
from echotts.training.state import fitting_weights
from tests import tiny_speaker
from tests.tiny_training import CHANNELS, TINY, Spoken, with_sections


@pytest.fixture
def config(tmp_path, shards):
    return with_sections(TINY, data={"data": str(shards)}, run={"run_dir": str(tmp_path / "run")})


def in_folder(config, folder):
    return with_sections(config, run={"run_dir": str(folder)})


def lines(run_dir, name="loss/train"):
    found = [json.loads(line) for line in metrics.metrics_path(run_dir).read_text().splitlines()]
    return {line["step"]: line[name] for line in found if name in line}


def events(run_dir):
    found = [json.loads(line) for line in metrics.metrics_path(run_dir).read_text().splitlines()]
    return [(line["step"], line["event"]) for line in found if "event" in line]


class StopAfter(StopSignal):
    """Requests a stop after it has been checked this often."""

    def __init__(self, steps):
        self._left = steps

    @property
    def requested(self):
        self._left -= 1
        return self._left <= 0


def assert_same_weights(one, other):
    one, other = flatten(one.params), flatten(other.params)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def test_a_resumed_run_equals_one_that_never_stopped_bit_by_bit(config, uninterrupted, tmp_path):
    parts = in_folder(config, tmp_path / "parts")
    first = train(parts, stop=StopAfter(3))
    assert events(tmp_path / "parts") == [(0, "started"), (3, "stopped")]
    assert (first.step, first.finished) == (3, False)
    second = train(parts)
    assert (second.step, second.samples_seen, second.finished) == (6, 48, True)
    for weights in ("raw", "ema"):
        assert_same_weights(load_run(uninterrupted, weights), load_run(tmp_path / "parts", weights))
    for name in ("loss/train", "data/audio_hours"):
        assert lines(uninterrupted, name) == lines(tmp_path / "parts", name)
    assert events(tmp_path / "parts")[2:] == [(3, "resumed"), (6, "finished")]
    runs = (uninterrupted, tmp_path / "parts")
    states = [(step_folders(run / CHECKPOINTS)[0] / "meta" / "metadata") for run in runs]
    one, other = (json.loads(path.read_text())["stream"] for path in states)
    assert one == other


def test_a_resumed_run_with_muon_equals_one_that_never_stopped_bit_by_bit(config, tmp_path):
    muon = with_sections(config, optim={"method": "muon", "decay_share": 0.5})
    train(in_folder(muon, tmp_path / "whole"))
    parts = in_folder(muon, tmp_path / "parts")
    train(parts, stop=StopAfter(3))
    assert train(parts).finished
    assert_same_weights(load_run(tmp_path / "whole", "raw"), load_run(tmp_path / "parts", "raw"))
    with pytest.raises(ValueError, match="was not trained with AdamW"):
        export(tmp_path / "whole", tmp_path / "step_6.pkl")


def test_resuming_passes_over_a_half_written_checkpoint(config, uninterrupted, tmp_path):
    train(config, stop=StopAfter(3))
    newest, _ = step_folders(tmp_path / "run" / CHECKPOINTS)
    (newest / "meta" / "metadata").unlink()
    assert train(config).finished
    assert_same_weights(load_run(tmp_path / "run"), load_run(uninterrupted))


def test_a_finished_run_that_is_started_again_does_nothing(config):
    before = train(config)
    assert train(config) == before
    shorter = with_sections(config, optim={"steps": config.optim.steps - 1})
    assert train(shorter) == before  # finished: otherwise a launcher would start it again forever
    assert before.finished


def test_a_run_past_its_steps_warns_and_is_not_changed(config, tmp_path, caplog):
    before = train(config)
    with caplog.at_level(logging.WARNING, logger="echotts"):
        assert train(with_sections(config, optim={"steps": 4})) == before
    assert f"{tmp_path / 'run'} is already at step 6 and --steps is 4: nothing to train" in caplog.text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["optim"]["steps"] == 6
    assert events(tmp_path / "run")[-1] == (6, "finished")


def test_a_second_training_in_the_same_run_directory_is_refused(config, tmp_path):
    with (
        claimed(tmp_path / "run"),
        pytest.raises(RunInUseError, match=f"in use by another training: .* process {os.getpid()}, since"),
    ):
        train(config)
    assert not (tmp_path / "run" / CHECKPOINTS).exists()


def test_a_run_that_receives_a_signal_saves_and_skips_what_was_due(config, tmp_path, shards):
    spoken = []

    def speak(weights, text, seed, voice):
        spoken.append(weights.facts.step)
        return Spoken(Sound())

    run = {"eval_every": 1, "sample_every": 1, "sentences": ("a",), "save_every_steps": 0}
    config = with_sections(config, data={"heldout": str(shards)}, run=run)
    assert train(config, speak=speak, stop=StopAfter(2)).step == 2
    assert spoken == list(lines(tmp_path / "run", "heldout/loss")) == [1]
    assert load_run(tmp_path / "run").facts.step == 2


def test_a_run_of_another_configuration_is_not_resumed(config, tmp_path):
    train(config, stop=StopAfter(1))
    with pytest.raises(ConfigDiffersError, match=r"optim\.learning_rate: 0\.003 -> 0\.5"):
        train(with_sections(config, optim={"learning_rate": 0.5}))
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["optim"]["learning_rate"] == 0.003


class Sound:
    """A fake of synthesis: the file contains the request."""

    def __init__(self, *asked):
        self.asked = asked

    def save(self, path):
        path.write_text(repr(self.asked))


def test_the_loss_falls_with_evaluations_and_samples_in_between(config, tmp_path, shards, monkeypatch):
    monkeypatch.setattr(report, "peak_flops", lambda kind: 1e9)
    waits_s, next_batch = 0.05, feed.Stream.next
    monkeypatch.setattr(feed.Stream, "next", lambda stream: (time.sleep(waits_s), next_batch(stream))[1])
    config = with_sections(
        config,
        optim={"steps": 60, "learning_rate": 1e-2},
        data={"heldout": str(shards), "buckets": (Bucket(frames=8, tokens=8), Bucket(frames=16, tokens=12))},
        run={
            "sample_references": ("heldout",),
            "eval_every": 30,
            "sample_every": 40,
            "save_every_steps": 50,
            "sentences": ("ab", "c d!"),
            "tensorboard": True,
        },
    )

    def speak(weights, text, seed, voice):
        return Spoken(Sound(weights.facts.step, text, seed), Sound(voice.shape))

    train(config, speak=speak)
    run_dir = tmp_path / "run"
    losses = list(lines(run_dir).values())
    assert len(losses) == 60
    assert np.mean(losses[-15:]) < 0.75 * np.mean(losses[:15])
    heldout = lines(run_dir, "heldout/loss")
    assert list(heldout) == [30, 60]
    assert heldout[60] < heldout[30]
    assert lines(run_dir, "heldout/text_gain")[60] > 0.005  # it reads
    assert set(metrics.timestep_bucket_names()) <= set(json.loads(metrics_line(run_dir, "heldout/loss")))
    happened = [name for _, name in events(run_dir) if name != "slow_step"]  # which a busy machine may have
    assert happened == ["started", "recompiled", "finished"]
    assert lines(run_dir, "compile/count")[60] == 2  # one per bucket
    assert lines(run_dir, "data/samples_seen")[60] == 480
    valid, bucket = lines(run_dir, "data/frames_valid_share"), lines(run_dir, "data/bucket_frames")
    frames = sum(8 * valid[step] * bucket[step] for step in valid)
    assert lines(run_dir, "data/audio_hours")[60] == pytest.approx(frames / 25 / 3600)
    tokens = {8: 8, 16: 12}
    for step, share in lines(run_dir, "throughput/mfu_share").items():
        flops = 8 * training_flops(TINY.model, bucket[step], tokens[bucket[step]], 8)
        step_s = lines(run_dir, "time/step_s")[step]
        assert share == pytest.approx(flops / step_s / (1e9 * jax.device_count()), rel=1e-4)
    clipped = lines(run_dir, "grad/clip_share")  # a line for each step: 0 or 1
    assert all((norm > 1) == clipped[step] for step, norm in lines(run_dir, "grad/norm").items())
    assert all(0 < share < 1 for share in lines(run_dir, "host/disk_free_share").values())
    assert all(1e7 < size < 1e11 for size in lines(run_dir, "host/memory_bytes").values())
    p50, p95, mean = (lines(run_dir, f"time/{name}") for name in ("step_p50_s", "step_p95_s", "step_s"))
    assert p50 == p95  # a line for each step
    assert waits_s < np.median(list(p50.values())) < 60
    waited_s = sum(mean[step] * share for step, share in lines(run_dir, "time/data_wait_share").items())
    assert 60 * waits_s <= waited_s < sum(mean.values())
    samples_per_s = lines(run_dir, "throughput/samples_per_s")
    assert all(samples_per_s[step] * seconds == pytest.approx(8) for step, seconds in mean.items())
    assert not lines(run_dir, "device/memory_bytes") and not lines(run_dir, "host/lag_steps")  # a CPU, alone
    assert [path.name for path in sorted((run_dir / "samples").iterdir())] == ["step_00000040", "step_00000060"]
    spoken = run_dir / "samples" / "step_00000040"
    assert (spoken / "01_c-d.wav").read_text() == "(40, 'c d!', 1)"
    said = json.loads((spoken / "sentences.json").read_text())
    assert said["01_c-d.wav"] == {"text": "c d!", "reference": "reference_01.wav"}
    assert re.fullmatch(rf"\(\(\d, {CHANNELS}\),\)", (spoken / "reference_01.wav").read_text())
    assert json.loads((run_dir / "config.json").read_text())["optim"]["steps"] == 60
    [events_file] = (run_dir / "tensorboard").iterdir()
    assert events_file.read_bytes().count(b"loss/train") == 60


def metrics_line(run_dir, name):
    return next(line for line in metrics.metrics_path(run_dir).read_text().splitlines() if name in line)


def test_without_skips_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(config, tmp_path, monkeypatch):
    placed = []

    def poisoned(batch, mesh):
        placed.append(batch)
        if len(placed) == 4:
            batch = dataclasses.replace(batch, latent=np.where(np.arange(8)[:, None, None] == 2, np.nan, batch.latent))
        return real_place(batch, mesh)

    real_place = feed.to_devices
    monkeypatch.setattr(feed, "to_devices", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 4: loss nan") as caught:
        train(with_sections(config, run={"save_every_steps": 1, "skips": 0}))
    assert len(placed) <= 5  # found one step late at most
    assert step_folders(tmp_path / "run" / CHECKPOINTS)[0].name == "step_00000003"
    assert events(tmp_path / "run") == [(0, "started"), (4, "nan"), (4, "failed")]
    message = str(caught.value)
    assert "non-finite rows: s-00" in message
    assert message.count("s-00") == 9
    assert "\n" not in message


def test_sigterm_finishes_the_step_saves_and_leaves(config, tmp_path):
    config = with_sections(config, run={"sample_every": 2, "sentences": ("a",), "save_every_steps": 100})

    def speak(weights, text, seed, voice):
        assert voice is None
        os.kill(os.getpid(), signal.SIGTERM)
        return Spoken(Sound())

    before = signal.getsignal(signal.SIGTERM)
    result = train(config, speak=speak)
    assert not result.finished
    assert result.step in (2, 3)
    assert load_run(tmp_path / "run").facts.step == result.step
    assert signal.getsignal(signal.SIGTERM) is before


def test_fine_tuning_starts_with_the_given_weights_at_step_zero(config, tmp_path):
    train(config, stop=StopAfter(2))
    tuned = with_sections(config, run={"run_dir": str(tmp_path / "tuned"), "init_from": str(tmp_path / "run")})
    result = train(tuned, stop=StopAfter(1))
    assert (result.step, result.samples_seen) == (1, 8)
    # the first step has learning rate 0: the weights are still those it began with
    assert_same_weights(load_run(tmp_path / "tuned", "raw"), load_run(tmp_path / "run", "ema"))


def test_a_run_resumed_from_a_published_pickle_equals_an_uninterrupted_one(config, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    config = with_sections(config, optim={"steps": 20}, run={"save_every_steps": 10})
    train(in_folder(config, whole))
    export(whole / CHECKPOINTS / "step_00000010", tmp_path / "step_10.pkl")
    run = {"init_from": str(tmp_path / "step_10.pkl"), "resume_optimizer": True}
    assert train(with_sections(in_folder(config, again), run=run)) == Result(step=20, samples_seen=160, finished=True)
    for folder in (whole, again):
        export(folder, folder / "last.pkl")
    one, other = (interop.load_published(folder / "last.pkl") for folder in (whole, again))
    assert (one.step, one.samples_seen) == (other.step, other.samples_seen) == (20, 160)
    jax.tree.map(np.testing.assert_array_equal, (one.params, one.opt_state), (other.params, other.opt_state))
    for name in ("loss/train", "data/audio_hours", "optim/learning_rate"):
        expected = lines(whole, name)
        assert lines(again, name) == {step: expected[step] for step in range(11, 21)}
    newest = [step_folders(folder / CHECKPOINTS)[0] for folder in (whole, again)]
    assert read_meta(newest[0]).stream == read_meta(newest[1]).stream


def test_a_pickle_of_too_many_samples_to_replay_starts_the_data_from_the_beginning(
    config, tmp_path, caplog, monkeypatch
):
    train(in_folder(config, tmp_path / "first"), stop=StopAfter(3))
    export(tmp_path / "first", tmp_path / "step_3.pkl")
    monkeypatch.setattr("echotts.training.start.REPLAYED_SAMPLES", 23)
    run = {"init_from": str(tmp_path / "step_3.pkl"), "resume_optimizer": True}
    with caplog.at_level(logging.WARNING, logger="echotts"):
        assert train(with_sections(config, run=run), stop=StopAfter(1)).samples_seen == 32
    assert "24 samples were seen before" in caplog.text
    assert read_meta(step_folders(tmp_path / "run" / CHECKPOINTS)[0]).stream["step"] == 1


def test_a_pickle_without_optimizer_state_cannot_be_resumed(config, uninterrupted, tmp_path):
    export(uninterrupted, tmp_path / "ema.pkl", "ema")
    run = {"init_from": str(tmp_path / "ema.pkl"), "resume_optimizer": True}
    with pytest.raises(ValueError, match=r"ema\.pkl: has no optimizer state: start from its weights alone"):
        train(with_sections(config, run=run))
    with pytest.raises(ValueError, match=r"init_from model\.safetensors must be a \.pkl"):
        with_sections(config, run=run | {"init_from": "model.safetensors"})


def test_weights_of_another_model_are_refused_with_the_sizes(config, tmp_path):
    train(config, stop=StopAfter(1))
    other = with_sections(
        config,
        model={"depth": 3, "mlp_width": 96},
        run={"run_dir": str(tmp_path / "other"), "init_from": str(tmp_path / "run")},
    )
    with pytest.raises(ValueError, match=r"another model: model\.depth: 2 -> 3; model\.mlp_width: 64 -> 96"):
        train(other)


@pytest.mark.parametrize(("theirs", "ours"), [("channel", "none"), ("none", "scalar"), ("scalar", "channel")])
def test_weights_for_latents_of_another_scale_are_refused_with_the_flag(theirs, ours, tmp_path):
    scale = LatentScale.measured(theirs, [0.5] * CHANNELS, [2.0] * CHANNELS).to_json()
    given, speaker = str(tmp_path / "a.safetensors"), tiny_speaker.CONFIG
    facts = dataclasses.replace(tiny_speaker.FACTS, latent_scale=scale)
    export_file.save_export(given, tiny_speaker.random_params(), speaker, facts)
    config = dataclasses.replace(TINY, model=speaker)
    flag = f"data.latent_scale: {theirs} -> {ours} .*; use --data.latent_scale {theirs}"
    with pytest.raises(ValueError, match=flag):
        fitting_weights(given, with_sections(config, data={"latent_scale": ours}))
    fitting_weights(given, with_sections(config, data={"latent_scale": theirs}))


def test_a_run_may_begin_with_the_built_in_model():
    weights = fitting_weights("demo", preset("demo"))
    assert weights.config.latent_channels == 64


def test_latents_of_another_codec_are_refused_before_anything_is_made(config, tmp_path):
    with pytest.raises(
        ValueError, match=r"latents of 8 channels, but the model takes 16: set --model\.latent_channels 8"
    ):
        train(with_sections(config, model={"latent_channels": 16}))
    assert not (tmp_path / "run").exists()


def test_a_run_needs_a_directory_it_can_make(config, tmp_path):
    with pytest.raises(ValueError, match="no run directory"):
        train(in_folder(config, ""))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train(in_folder(config, tmp_path / "file" / "run"))


def test_the_tokenizer_and_the_codec_belong_to_the_run_and_others_are_rejected(config, tmp_path):
    for name, words in (("one", "abcd badc dcba"), ("other", "aabb ccdd bbaa")):
        model = SentencePieceTokenizer.train([words] * 50, vocabulary=270).to_bytes()
        (tmp_path / f"{name}.model").write_bytes(model)
    one, other = (
        open_inputs(
            with_sections(config, data={"tokenizer": str(tmp_path / f"{name}.model")}, model={"vocabulary": 270})
        ).facts
        for name in ("one", "other")
    )
    assert tokenizer_from_json(one.tokenizer).encode("abcd").tolist() != [0, *b"abcd"]
    check_facts(one, one, "shards")
    with pytest.raises(ValueError, match="the tokenizer differs from the one the run was trained with"):
        check_facts(one, other, "shards")
    with pytest.raises(
        ValueError, match="shards: latents of the codec with hash b, but the run was trained on those of a"
    ):
        check_facts(*(Facts(codec=CodecFacts(weights_hash=name)) for name in "ab"), "shards")


def test_a_missing_or_too_large_tokenizer_is_an_error(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer nowhere: no such file"):
        open_inputs(with_sections(config, data={"tokenizer": "nowhere"}))
    with pytest.raises(ValueError, match=r"byte tokenizer has 256 ids, model\.vocabulary is 200"):
        open_inputs(with_sections(config, model={"vocabulary": 200}))
