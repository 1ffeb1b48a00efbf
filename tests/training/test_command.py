"""train_pretrain.py and `export` as they are called."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from echotts import config as configs
from echotts.checkpoint.contents import Meta
from echotts.checkpoint.facts import Facts
from echotts.checkpoint.weights import describe
from echotts.cli.app import UsageError
from echotts.cli.train import parse_config
from echotts.codec import CodecConfig, save_codec
from echotts.codec.backbone import init_params
from echotts.config import Bucket, to_dict
from echotts.evaluation.samples import make_speaker
from echotts.synthesis import Speech
from echotts.training import mesh as meshes
from echotts.training.state import initial_state
from tests.tiny_training import CHANNELS, TINY

ROOT = Path(__file__).parents[2]
SMALL = (
    "--model.latent_channels=8 --model.width=32 --model.depth=2 --model.heads=2 --model.mlp_width=64 "
    "--model.text.width=16 --model.text.depth=1 --model.text.heads=2 --model.text.mlp_width=32 "
    "--model.speaker.width=16 --model.speaker.depth=1 --model.speaker.heads=2 --model.speaker.mlp_width=32 "
    "--model.timestep_width=16 --model.adaln_rank=8 --batch_size=8 --data.streams=8 --data.reference_frames=8 "
    "--data.buckets 16x12 --run.log_every=1 --run.eval_every=0"
)


def call(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=200, **options
    )


@pytest.fixture(scope="module")
def environment(compile_once):
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compile_once),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def test_the_preset_is_the_default_of_everything_and_flags_change_it():
    config = parse_config(["--preset", "1.3b", "--data", "d", "--run_dir", "r"])
    expected = configs.echo_1b3()
    assert (config.preset, config.model, config.optim) == ("1.3b", expected.model, expected.optim)
    assert (config.data.data, config.run.run_dir) == ("d", "r")


def test_underscores_hyphens_and_section_keys_are_all_understood():
    line = (
        "--preset=demo --data d --run-dir r --steps 7 --batch-size 4 --model.compute-dtype bfloat16 "
        "--optim.learning_rate 0.5 --data.buckets 12x34 56x78 --run.sentences one two --heldout h --seed 3"
    )
    config = parse_config(line.split())
    assert (config.optim.steps, config.data.batch_size, config.optim.learning_rate) == (7, 4, 0.5)
    assert config.model.compute_dtype == "bfloat16"
    assert config.data.buckets == (Bucket(frames=12, tokens=34), Bucket(frames=56, tokens=78))
    assert config.run.sentences == ("one", "two")
    assert (config.data.heldout, config.run.seed) == ("h", 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--data d --run_dir r --learning_rat 1", "learning_rat"),
        ("--data d --run_dir r --model.widht 64", "widht"),
        ("--data d --run_dir r --preset 2b", "unknown preset '2b': choose one of demo, small, 840m, 1.3b"),
        ("--data d --run_dir r --model.width 7", "decoder width 7 is not a multiple of heads"),
        ("--data d --run_dir r --data.buckets 12", "buckets"),
        ("--data d --run_dir r --steps 0", "steps 0 and accumulation 1 must be at least 1"),
        ("--data d --run_dir r --data.reference_frames 30", "30 is not a multiple of the model's patch, 4"),
        ("--data d", "--run_dir is missing"),
        ("--run_dir r", "--data is missing"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, said):
    with pytest.raises(UsageError) as caught:
        parse_config(arguments.split())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tuning_takes_sizes_and_lengths_from_the_base_and_defaults_for_minutes_of_speech(tmp_path):
    (tmp_path / "shards" / "heldout").mkdir(parents=True)
    line = [
        "--tune",
        "lora",
        "--init-from=demo",
        "--data",
        str(tmp_path / "shards"),
        "--run_dir",
        "r",
        "--tune.rank",
        "4",
    ]
    config = parse_config([*line, "--model.remat", "full"])
    demo = configs.demo()
    assert (config.preset, config.tune.method, config.tune.rank) == ("demo", "lora", 4)
    assert config.model == dataclasses.replace(demo.model, remat="full")
    assert (config.data.buckets, config.data.reference_frames) == (demo.data.buckets, demo.data.reference_frames)
    assert config.data.heldout == str(tmp_path / "shards" / "heldout")
    assert (config.optim.learning_rate, config.run.patience) == (demo.optim.learning_rate, 6)
    line[1] = "full"
    assert parse_config(line).optim.learning_rate == demo.optim.learning_rate / 10
    line[1] = "inversion"
    inversion = parse_config(line)
    assert (inversion.optim.weight_decay, inversion.flow.speaker_dropout) == (0.0, 0.0)
    line[2] = "--init_from=english"
    assert parse_config(line).data.tokenizer == "english"
    line[:3] = ["--distil_from", "demo"]
    student = parse_config(line)
    assert (student.tune.method, student.run.init_from, student.tune.rank) == ("distil", "demo", 4)
    assert (student.data.batch_size, student.flow.text_dropout, student.run.patience) == (demo.data.batch_size, 0.0, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--tune lora --run_dir r", "tune lora adapts a trained model with a new optimizer: give it as --init_from"),
        ("--tune lora --init_from demo --run_dir r", "patience 6 needs held-out shards: give them as --heldout"),
        ("--tune lora --init_from nowhere.safetensors --run_dir r", "nowhere.safetensors: no such file"),
        ("--tune half --init_from demo --run_dir r", "half"),
        ("--tune lora --init_from demo --tune.rank 0 --run_dir r", "rank 0 must be from 1 to 1024"),
        (
            "--distil_from demo --tune full --run_dir r",
            "--distil_from demo is short for --tune distil --init_from demo",
        ),
        ("--distil_from nowhere.safetensors --run_dir r", "nowhere.safetensors: no such file"),
        ("--distil_from demo --batch_size 6 --run_dir r", "batch_size 6 is not a multiple of 4"),
        ("--distil_from demo --tune.scales 3 1 --run_dir r", "scales (3.0, 1.0): give the lowest and the highest"),
        ("--distil_from demo --tune.interval 0 2 --run_dir r", "interval (0.0, 2.0) must be within 0..1"),
    ],
)
def test_a_tuning_that_cannot_be_is_one_line(arguments, said):
    with pytest.raises((UsageError, FileNotFoundError)) as caught:
        parse_config(["--data", "d", *arguments.split()])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_is_fast_because_it_imports_no_jax():
    code = (
        "import sys\nfrom echotts.cli.train import parse_config\n"
        "try:\n    parse_config(['--help'])\nexcept SystemExit as stop:\n"
        "    sys.exit(stop.code or 'jax' in sys.modules)"
    )
    done = call("-c", code)
    assert done.returncode == 0, done.stderr
    for words in ("--preset", "--data", "--run_dir", "--optim.learning_rate", "default: 0.0015"):
        assert words in done.stdout


def test_an_unknown_flag_exits_with_2_and_missing_data_with_1(tmp_path):
    wrong = call("train_pretrain.py", "--data", "d", "--run_dir", tmp_path / "run", "--nosuch", "1")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1
    absent = call("train_pretrain.py", "--data", tmp_path / "*.tar", "--run_dir", tmp_path / "run")
    assert absent.returncode == 1
    assert absent.stderr.startswith("echotts: ")
    assert absent.stderr.count("\n") == 1


def test_a_run_is_interrupted_resumed_and_exported_from_the_command_line(tmp_path, shards, environment):
    run_dir = tmp_path / "run"
    command = [
        "train_pretrain.py",
        "--data",
        f"{shards}/*.tar",
        "--run_dir",
        run_dir,
        "--steps",
        "3000",
        *SMALL.split(),
    ]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 3/3000: loss "):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=120) == 75, rest
    assert "SIGINT: stopping after this step" in rest
    saved = [path.name for path in (run_dir / "checkpoints").iterdir()]
    assert len(saved) == 1
    stopped = int(saved[0].split("_")[1])
    assert stopped >= 3

    again = call(*command, "--steps", stopped + 2, env=environment)
    assert again.returncode == 0, again.stderr
    assert f"trained {stopped + 2} steps on {8 * (stopped + 2)} samples" in again.stdout
    assert json.loads((run_dir / "config.json").read_text())["optim"]["steps"] == stopped + 2

    exported = call("-m", "echotts", "export", "--run_dir", run_dir, "--output", tmp_path / "m.safetensors")
    assert exported.returncode == 0, exported.stderr
    assert f"ema weights of step {stopped + 2}" in exported.stdout
    assert (tmp_path / "m.safetensors").is_file()

    other = call(*command, "--optim.learning_rate", "0.1", env=environment)
    assert other.returncode == 1
    assert "resuming" not in other.stderr
    complaint = other.stderr.splitlines()[-1]
    assert complaint.startswith("echotts: ")
    assert "optim.learning_rate: 0.0015 -> 0.1" in complaint


def test_samples_are_spoken_with_the_codec_of_the_data(tmp_path, shards):
    codec_config = CodecConfig(
        encoder_dim=4,
        encoder_rates=(2, 3, 4),
        latent_dim=8,
        decoder_dim=32,
        decoder_rates=(4, 3, 2),
        codebook_dim=CHANNELS,
        sample_rate=8000,
    )
    save_codec(tmp_path / "c.safetensors", init_params(codec_config, jax.random.key(0)), codec_config, "tiny")
    line = ["--data", str(shards), "--run_dir", str(tmp_path), *SMALL.split(), "--run.sentences", "ab", "--run.codec"]
    speak = make_speaker(parse_config([*line, str(tmp_path / "c.safetensors")]))
    assert speak is not None
    params = initial_state(TINY, meshes.make_mesh()).params
    meta = Meta(step=1, samples_seen=8, stream={}, config=to_dict(TINY), facts=Facts(silence=[[0.0] * CHANNELS]))
    weights = describe(params, TINY.model, meta, "ema")
    made_up = speak(weights, "ab", 0, None)
    assert made_up.reference is None
    made_up.speech.save(tmp_path / "ab.wav")
    assert (tmp_path / "ab.wav").stat().st_size > 44
    voice = np.random.default_rng(0).normal(size=(3, CHANNELS)).astype(np.float32)
    heldout = speak(weights, "ab", 0, voice).reference
    assert isinstance(heldout, Speech)
    np.testing.assert_array_equal(heldout.latents, voice)
    assert len(heldout.samples) == 3 * 24  # frames, samples each
    assert made_up.heard is None
    with pytest.raises(ValueError, match="'ab': pocketsphinx recognises digits only"):
        make_speaker(parse_config([*line, str(tmp_path / "c.safetensors"), "--run.eval_asr", "digits"]))
    line[line.index("ab")] = "one"
    listened = make_speaker(parse_config([*line, str(tmp_path / "c.safetensors"), "--run.eval_asr", "digits"]))
    assert listened is not None
    heard = listened(weights, "one", 0, None).heard
    assert heard is not None and (heard.words, heard.characters) == (1, 3)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_speaker(parse_config([*line, str(tmp_path / "nowhere.safetensors")]))


def test_recordings_without_a_voice_are_rejected_before_the_run(tmp_path, shards):
    line = ["--data", str(shards), "--run_dir", str(tmp_path), "--run.sentences", "ab", "--run.sample_references"]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav"):
        make_speaker(parse_config([*line, str(tmp_path / "nowhere.wav")]))
    soundfile.write(tmp_path / "short.wav", np.ones(1600), 16_000)
    with pytest.raises(ValueError, match=r"short\.wav: is 0\.10 s long: a reference needs at least 0\.5 s"):
        make_speaker(parse_config([*line, str(tmp_path / "short.wav")]))
    with pytest.raises(UsageError, match="sample_references heldout needs held-out shards"):
        parse_config([*line, "heldout"])


def test_without_sentences_nothing_speaks(shards):
    assert make_speaker(parse_config(["--data", str(shards), "--run_dir", "r", "--run.sentences"])) is None
