"""Codec training: resumes bitwise, keeps frozen parameters, independent of the number of devices."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from echotts.checkpoint.agreement import ConfigDiffersError
from echotts.checkpoint.guard import NonFiniteError
from echotts.codec import CodecConfig, load_codec
from echotts.codec.backbone import init_params
from echotts.codec.training.config import CodecOptim, CodecTraining, CropConfig, DiscriminatorConfig, LossConfig
from echotts.codec.training.crops import Crops
from echotts.codec.training.loop import train_codec
from echotts.codec.training.step import initial_state, learning_rate, make_step
from echotts.config import RunConfig
from echotts.monitor.folders import LocalFolder
from echotts.monitor.samples import Samples
from echotts.multihost import hang
from echotts.rundir import pause
from tests.conftest import ROOT

RATE = 8000
SMALL = CodecConfig(
    encoder_dim=2,
    encoder_rates=(2, 4),
    latent_dim=4,
    decoder_dim=8,
    decoder_rates=(4, 2),
    codebook_dim=3,
    sample_rate=RATE,
)
TRAINING = CodecTraining(
    codec=SMALL,
    steps=6,
    batch_size=2,
    frames=32,
    loss=LossConfig(mel_scales=((64, 8),), stft=1.0, stft_windows=(64,), wave=1.0, adversarial_from=2),
    optim=CodecOptim(learning_rate=3e-3),
    discriminators=DiscriminatorConfig(
        periods=(2,), period_channels=(2, 2, 2, 2, 2), windows=(64,), bands=(0.0, 1.0), band_channels=2
    ),
    crops=CropConfig(level_spread_db=6.0),
)


class Tones:
    """Clips of one tone each."""

    def __init__(self, count: int = 24, fault: float = 1.0):
        self.seconds = np.full(count, 0.3)
        self.fault = fault

    def name(self, clip: int) -> str:
        return f"tone {clip}"

    def read(self, clip: int, start_s: float, limit_s: float, sample_rate: int) -> np.ndarray:
        time_s = start_s + np.arange(int(limit_s * sample_rate)) / sample_rate
        return (self.fault * 0.3 * np.sin(2 * np.pi * (200 + 30 * clip) * time_s)).astype(np.float32)


def run_in(folder: Path, given: CodecTraining = TRAINING, **run) -> CodecTraining:
    settings = {"run_dir": str(folder), "save_every_steps": 3, "log_every": 1, "eval_batches": 1, "eval_every": 0}
    return dataclasses.replace(given, run=RunConfig(**{**settings, "sample_every": 0, **run}))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for path in (folder / "metrics").glob("*.jsonl") for line in path.read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss/train"] for line in lines(folder) if "loss/train" in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("whole")
    params, step = train_codec(run_in(folder, eval_every=6, sample_every=6), Tones())
    assert step == 6
    return params, folder


def test_discriminators_start_at_the_configured_step_and_the_loss_falls(whole):
    told = {line["step"]: line for line in lines(whole[1]) if "loss/train" in line}
    assert ["loss/discriminator" in told[step] for step in range(1, 7)] == [False, False, True, True, True, True]
    assert told[2]["loss/mel"] < told[1]["loss/mel"] and told[6]["loss/mel"] < told[3]["loss/mel"]


class KilledError(Exception):
    pass


def test_a_killed_training_resumes_bitwise_identically(whole, tmp_path: Path):
    def killer(step: int, line) -> None:
        if step == 5:  # the last save is of step 3
            raise KilledError

    with pytest.raises(KilledError):
        train_codec(run_in(tmp_path), Tones(), report=killer)
    seen: list[int] = []
    params, _ = train_codec(run_in(tmp_path), Tones(), report=lambda step, line: seen.append(step))
    assert seen == [4, 5, 6]
    assert losses(tmp_path) == losses(whole[1])
    jax.tree.map(np.testing.assert_array_equal, params, whole[0])


def test_held_out_losses_and_samples_are_where_the_dashboard_looks_for_them(whole):
    measured = next(line for line in lines(whole[1]) if "heldout/mel" in line)
    assert measured["step"] == 6 and measured["heldout/mel"] > 0
    ((step, items),) = Samples(LocalFolder(whole[1])).steps()
    assert step == 6 and len(items) == 2 and items[0].reference_id
    assert soundfile.info(whole[1] / items[0].path).frames == TRAINING.crop_samples


def test_a_codec_is_loaded_from_a_possibly_running_training(whole, tmp_path: Path):
    params, folder = whole
    for place in (folder, folder / "checkpoints" / "step_00000006"):
        codec = load_codec(place)
        assert (codec.config, codec.codec_id) == (SMALL, place.name)
        jax.tree.map(np.testing.assert_array_equal, codec.params, params)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint found"):
        load_codec(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the watch's SystemExit
def test_a_hanging_step_ends_the_process_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended = threading.Event()

    def end(code: int) -> None:
        ended.set()
        raise SystemExit(code)  # of the watching thread only

    monkeypatch.setattr(hang, "os", SimpleNamespace(_exit=end))
    monkeypatch.setattr(hang, "faulthandler", Mock())
    monkeypatch.setattr(hang, "logging", Mock())
    next_crops = Crops.batch

    def stuck(crops: Crops, step: int) -> np.ndarray:
        if step == 1:
            assert ended.wait(60)
            raise RuntimeError("as if it had not been ended")
        return next_crops(crops, step)

    monkeypatch.setattr(Crops, "batch", stuck)
    with pytest.raises(RuntimeError, match="as if it had not been ended"):
        train_codec(run_in(tmp_path, save_every_steps=0, hang_s=0.2), Tones())
    (said,) = [line for line in lines(tmp_path) if line.get("event") == "hang"]
    assert said["step"] == 1 and "no step finished for" in said["message"]


def test_space_for_a_save_is_freed_by_the_rules_of_the_watchdog(tmp_path: Path):
    log = tmp_path / "logs" / "old.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * 100)
    os.utime(log, (1, 1))
    rules = tmp_path / "watchdog.toml"
    rules.write_text(f'[limits]\nstart = 1e-9\nstop = 1e-9\n[[root]]\nkind = "logs"\npath = "{log.parent}"\n')
    short = dataclasses.replace(TRAINING, steps=1)
    train_codec(run_in(tmp_path / "run", short, disk_config=str(rules)), Tones())
    assert not log.exists()


def test_a_run_that_is_asked_to_wait_saves_waits_for_space_and_continues(tmp_path: Path):
    assert pause.ask(tmp_path, pause.Request(place=str(tmp_path), below=0.0))
    saved: list[str] = []

    def make_room() -> None:
        for _ in range(6000):
            if any(line.get("event") == "disk_full" for line in lines(tmp_path)):
                break
            time.sleep(0.01)
        saved.extend(path.name for path in (tmp_path / "checkpoints").iterdir())
        pause.withdraw(tmp_path)

    other = threading.Thread(target=make_room)
    other.start()
    assert train_codec(run_in(tmp_path), Tones())[1] == 6
    other.join()
    assert saved == ["step_00000001"]


def test_another_configuration_is_not_resumed(whole):
    other = dataclasses.replace(TRAINING, optim=CodecOptim(learning_rate=0.1))
    with pytest.raises(ConfigDiffersError, match=r"optim\.learning_rate: 0\.003 -> 0\.1"):
        train_codec(run_in(whole[1], other), Tones())


def test_a_decoder_trained_alone_leaves_latents_and_watermark_as_they_are_bit_by_bit(tmp_path: Path):
    start = init_params(SMALL, jax.random.key(7)) | {"watermark": {"message": jnp.ones((2, 2))}}
    alone = dataclasses.replace(TRAINING, decoder_only=True, steps=2)
    params, _ = train_codec(run_in(tmp_path, alone), Tones(), start=start)
    for kept, wanted in (
        (params["encoder"], start["encoder"]),
        (params["bottleneck"]["in"], start["bottleneck"]["in"]),
        (params["watermark"], start["watermark"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, kept, wanted)
    assert not np.array_equal(params["bottleneck"]["out"]["kernel"], start["bottleneck"]["out"]["kernel"])
    assert not np.array_equal(params["decoder"]["head"]["kernel"], start["decoder"]["head"]["kernel"])
    with pytest.raises(ValueError, match="name it with --init_from"):
        train_codec(run_in(tmp_path, alone), Tones())


def test_steps_that_are_not_finite_change_nothing_and_end_the_run_when_they_do_not_end(tmp_path: Path):
    plain = dataclasses.replace(TRAINING, crops=CropConfig(loudness=None), steps=6)
    step = jax.jit(make_step(plain, adversarial=False))
    state = initial_state(plain)
    bad, numbers = step(state, jnp.full((2, plain.crop_samples), jnp.nan), np.float32(np.inf))
    assert not numbers["good"] and int(bad.step) == 1
    jax.tree.map(np.testing.assert_array_equal, bad.arrays(), state.arrays())
    spike, numbers = step(state, 0.1 * jnp.ones((2, plain.crop_samples)), np.float32(1e-9))
    assert numbers["finite"] and not numbers["good"]
    jax.tree.map(np.testing.assert_array_equal, spike.params, state.params)
    with pytest.raises(NonFiniteError, match="the run stops without saving"):
        train_codec(run_in(tmp_path, plain, skips=0), Tones(fault=np.nan))
    assert [line["event"] for line in lines(tmp_path) if "event" in line][-2:] == ["nan", "failed"]


TWO_DEVICES = """
import dataclasses, jax, numpy as np
from echotts.codec.training.config import CodecOptim
from echotts.codec.training.step import initial_state, make_step
from echotts.training.mesh import batch_sharding, make_mesh, replicated
from tests.codec.training.test_loop import TRAINING

assert jax.device_count() == 2
training = dataclasses.replace(TRAINING, optim=CodecOptim(b1=0.0))  # Adam's first moment is the gradient
audio = 0.1 * np.random.default_rng(0).standard_normal((2, training.crop_samples)).astype(np.float32)
step = jax.jit(make_step(training, adversarial=True))
mesh = make_mesh()
places = [(jax.devices()[0], jax.devices()[0]), (replicated(mesh), batch_sharding(mesh))]
results = []
for whole, rows in places:
    state = jax.device_put(initial_state(training), whole)
    new, numbers = step(state, jax.device_put(audio, rows), np.float32(np.inf))
    results.append(jax.device_get([new.opt_state[name][1].mu for name in ("codec", "discriminators")]))
for one, two in zip(*results):
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    worst = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)))
    assert 0 < scale and worst <= 1e-6 * scale, (worst, scale)
print("equal")
"""


@pytest.mark.slow
def test_two_devices_give_the_gradients_of_one():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env=os.environ | flags,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr[-2000:]


def test_the_rate_rises_decays_and_ends_along_a_cosine():
    optim = CodecOptim(learning_rate=1.0, warmup_steps=10, decay=0.5, decay_share=0.5)
    assert float(learning_rate(optim, jnp.int32(4), 100)) == pytest.approx(0.5 * 0.5**4)
    assert float(learning_rate(optim, jnp.int32(75), 100)) == pytest.approx(0.5 * 0.5**75)
    plain = CodecOptim(learning_rate=1.0, decay=1.0)
    assert float(learning_rate(plain, jnp.int32(99), 100)) == 1


def test_without_clips_nothing_is_trained(tmp_path: Path):
    with pytest.raises(ValueError, match="no clips to train the codec on"):
        train_codec(run_in(tmp_path), Tones(0))


class HardTones(Tones):
    """Of five clips one is silent, and one is a square wave at full scale."""

    def read(self, clip: int, start_s: float, limit_s: float, sample_rate: int) -> np.ndarray:
        tone = super().read(clip, start_s, limit_s, sample_rate)
        return (0 * tone, np.sign(tone), tone, tone, tone)[clip % 5]


@pytest.mark.slow
def test_two_thousand_adversarial_steps_stay_finite_with_silent_and_clipped_clips(tmp_path: Path):
    hard = dataclasses.replace(
        TRAINING,
        steps=2000,
        loss=dataclasses.replace(TRAINING.loss, adversarial_from=0),
        crops=CropConfig(silence_db=-1000.0, clipped_share=1.0),  # none is drawn again
    )
    params, step = train_codec(run_in(tmp_path, hard, save_every_steps=0, log_every=50), HardTones())
    assert step == 2000
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    told = [line for line in lines(tmp_path) if "loss/train" in line]
    assert len(told) == 40 and told[-1]["loss/mel"] < told[0]["loss/mel"]
    assert all(line[name] is not None for line in told for name in ("loss/train", "loss/discriminator", "grad/norm"))
    assert not [line for line in lines(tmp_path) if line.get("event") in ("nan", "failed")]
