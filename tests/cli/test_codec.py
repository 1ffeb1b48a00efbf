"""`echotts codec`: input and output files, and one-line errors."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from echotts.cli import codec as command
from echotts.cli.app import EXIT_ASKED_TO_LEAVE, UsageError
from echotts.cli.codec import training
from echotts.codec import Codec, load_codec, load_encoded, save_codec
from echotts.codec.training import loop
from echotts.codec.training.config import PRESETS
from tests.codec.conftest import TINY, tiny_params


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "tiny.safetensors"
    save_codec(path, tiny_params(), TINY, "tiny")
    return path


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two recordings of other rates and channels, one in a subfolder."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    soundfile.write(folder / "a.wav", 0.1 * rng.standard_normal((16000, 2)), 16000)
    soundfile.write(folder / "sub" / "b.flac", 0.1 * rng.standard_normal(4000), 8000)
    return folder


def call(name: str, **flags: object) -> int:
    argv = [name]
    for flag, value in flags.items():
        argv += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    return command.main(argv)


def test_a_recording_is_encoded_and_decoded(weights: Path, recordings: Path, tmp_path: Path):
    latent, output = tmp_path / "z" / "a.npy", tmp_path / "a.flac"
    assert call("encode", input=recordings / "a.wav", output=latent, codec=weights) == 0
    assert np.load(latent).shape == (334, 5)  # 8,000 samples at 8 kHz, hop 24
    assert call("decode", input=latent, output=output, codec=weights, watermark="1010011100000001") == 0
    assert soundfile.info(output).frames == 334 * 24
    assert soundfile.info(output).samplerate == 8000


def test_a_tree_is_mirrored_and_a_bad_file_is_skipped(weights: Path, recordings: Path, tmp_path: Path):
    latents, sound = tmp_path / "z", tmp_path / "out"
    (recordings / "bad.wav").write_bytes(b"not a recording")
    assert call("encode", input=recordings, output=latents, codec=weights, loudness=-16) == 1
    assert sorted(path.relative_to(latents).as_posix() for path in latents.rglob("*.npy")) == ["a.npy", "sub/b.npy"]
    assert call("decode", input=latents, output=sound, codec=weights, format="ogg") == 0
    assert sorted(path.relative_to(sound).as_posix() for path in sound.rglob("*.ogg")) == ["a.ogg", "sub/b.ogg"]


def test_a_seed_samples_the_same_latents_again(weights: Path, recordings: Path, tmp_path: Path):
    outputs = [tmp_path / f"{n}.npy" for n in range(3)]
    for output, seed in zip(outputs, (1, 1, 2), strict=True):
        call("encode", input=recordings / "a.wav", output=output, codec=weights, seed=seed)
    first, again, other = map(np.load, outputs)
    np.testing.assert_array_equal(first, again)
    assert np.abs(other - first).max() > 0


def test_tokens_keep_the_channels_and_restore_the_recording(weights: Path, recordings: Path, tmp_path: Path):
    """As one types it: `codec encode in.wav out.npz`, without flags."""
    tokens, output = tmp_path / "a.npz", tmp_path / "a.flac"
    assert command.main(["compress", str(recordings / "a.wav"), str(tokens), "--codec", str(weights)]) == 0
    assert command.main(["decompress", str(tokens), str(output), "--codec", str(weights)]) == 0
    assert (soundfile.info(output).frames, soundfile.info(output).samplerate) == (16000, 16000)
    assert soundfile.info(output).channels == 2
    assert command.main(["encode", str(recordings / "a.wav"), str(tokens), "--codec", str(weights)]) == 0
    with np.load(tokens) as file:
        assert file["latents"].shape == (2, 334, 5)
    assert call("decode", input=tokens, output=output, codec=weights, watermark="1010011100000001") == 0
    assert (soundfile.info(output).frames, soundfile.info(output).channels) == (334 * 24, 2)


def test_shards_of_a_folder_write_each_file_once_and_resume(weights: Path, recordings: Path, tmp_path: Path):
    latents = tmp_path / "z"
    for name in "cdef":
        soundfile.write(recordings / f"{name}.wav", 0.1 * np.ones(900), 8000)
    written: list[Path] = []
    for shard in ("0/3", "1/3", "2/3"):
        assert call("encode", input=recordings, output=latents, codec=weights, format="npz", shard=shard, jobs=2) == 0
        now = set(latents.rglob("*.npz"))
        written += now - set(written)
        assert len(now) == len(written) == 2 * (1 + int(shard[0]))
    assert {path.relative_to(latents).with_suffix("").as_posix() for path in written} == {*"acdef", "sub/b"}
    written[0].unlink()
    before = {path: path.stat().st_mtime_ns for path in written[1:]}
    assert call("encode", input=recordings, output=latents, codec=weights, format="npz", resume=True) == 0
    assert written[0].exists()
    assert {path: path.stat().st_mtime_ns for path in written[1:]} == before
    with pytest.raises(UsageError, match="--shard '3/3'"):
        call("encode", input=recordings, output=latents, codec=weights, shard="3/3")


@pytest.mark.multiprocess
def test_files_of_a_folder_are_encoded_on_every_device(weights: Path, recordings: Path, tmp_path: Path):
    for name in "cde":
        soundfile.write(recordings / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(900), 8000)
    program = (
        "import jax, sys; from echotts.cli import codec; from echotts.codec import Codec\n"
        "used = set(); real = Codec.compress\n"
        "def seen(codec, *rest):\n"
        "    used.update(codec.params['encoder']['snake'].devices()); return real(codec, *rest)\n"
        "Codec.compress = seen\n"
        "assert not codec.main(sys.argv[1:]); assert len(used) == len(jax.devices()) == 2, used"
    )
    argv = ["encode", str(recordings), str(tmp_path / "two"), "--codec", str(weights), "--format", "npz"]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", program, *argv], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert call("encode", input=recordings, output=tmp_path / "one", codec=weights, format="npz") == 0
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.npz")]
    assert len(files) == 5
    for file in files:
        one, two = (load_encoded(tmp_path / folder / file).tokens for folder in ("one", "two"))
        np.testing.assert_allclose(two, one, atol=1e-5)


def test_hyphens_and_underscores_name_the_same_flag():
    for flag in ("--kl-weight", "--kl_weight"):
        argv = ["--data", "x", "--run-dir", "y", "--output", "z", flag, "0.5"]
        assert training.parse_arguments(argv).kl_weight == 0.5


def test_convert_keeps_the_hash_and_installs(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    output = tmp_path / "new.safetensors"
    assert call("convert", input=weights, output=output, id="org/new", install=True) == 0
    wanted = load_codec(weights).weights_hash
    assert (load_codec(output).weights_hash, load_codec(output).codec_id) == (wanted, "org/new")
    assert (tmp_path / "home" / ".cache" / "echotts" / "codecs" / f"{wanted}.safetensors").exists()
    assert wanted in capsys.readouterr().out


def test_info_and_evaluate_describe_a_codec_and_its_loss(
    weights: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
):
    assert call("info", codec=weights) == 0
    out = capsys.readouterr().out
    assert "8000 Hz" in out
    assert "24 samples, 333.333 frames/s" in out
    assert "5 channels" in out
    report = recordings.parent / "report"
    argv = ["evaluate", "--codec", str(weights), "demo", "--data", str(recordings), "--conditions", "clean", "noisy"]
    assert command.main([*argv, "--output", str(report), "--asr", "none"]) == 0
    printed = capsys.readouterr().out
    assert "mel distance" in printed and "demo, noisy" in printed and "STOI" in printed
    assert (report / "index.html").exists() and len((report / "results.jsonl").read_text().splitlines()) == 8


def test_train_writes_a_codec_that_loads(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}

    def pretend(settings: Any, clips: Any, placement: Any, start: Any, report: Any) -> tuple[Any, int]:
        seen.update(settings=settings, clips=clips, placement=placement)
        report(7, {"loss/train": 2.0, "time/step_s": 3.0, "time/left_s": 4.0})
        params = tiny_params(settings.codec)
        del params["watermark"]
        return params, seen.get("reached", 7)

    monkeypatch.setattr(loop, "train_codec", pretend)
    output = tmp_path / "small.safetensors"
    argv = [
        "train",
        "--data",
        f"{recordings}, {recordings}",
        "--run_dir",
        str(tmp_path / "run"),
        "--output",
        str(output),
    ]
    argv += ["--encoder_rates", "8", "8", "--encoder_dim", "4", "--latent_dim", "8", "--decoder-dim", "16"]
    argv += ["--steps", "7", "--kl-weight", "0.5", "--loss.feature", "5", "--run.save_every_steps", "3"]
    assert command.main(argv) == 0
    codec = load_codec(output)
    assert (codec.hop_length, codec.codec_id, codec.sample_rate) == (64, "small", 16000)
    settings, clips = seen["settings"], seen["clips"]
    assert (settings.steps, settings.loss.kl, settings.loss.feature, settings.run.save_every_steps) == (7, 0.5, 5.0, 3)
    assert settings.run.run_dir == str(tmp_path / "run") and settings.optim == PRESETS["demo"].optim
    np.testing.assert_allclose(sorted(clips.seconds), [0.5, 0.5, 1.0, 1.0])
    assert seen["placement"].whole.is_fully_replicated

    output = tmp_path / "small.pth"
    argv[argv.index("--output") + 1] = str(output)
    assert command.main(argv) == 0
    assert load_codec(output).hop_length == 64
    seen["reached"] = 4  # asked to stop
    argv[argv.index("--output") + 1] = str(tmp_path / "never.pth")
    assert command.main(argv) == EXIT_ASKED_TO_LEAVE and not (tmp_path / "never.pth").exists()


@pytest.mark.parametrize("flag", ["--preset=speech", "--preset speech"])
def test_the_flags_of_train_default_to_the_presets(flag: str):
    required = ["--data", "x", "--run_dir", "y", "--output", "z.pth"]
    assert training.training_of(training.parse_arguments(required), None).loss == PRESETS["demo"].loss
    found = training.training_of(training.parse_arguments([*flag.split(), *required]), None)
    wanted = dataclasses.replace(PRESETS["speech"], preset="speech", run=found.run)
    assert found == wanted and found.run.run_dir == "y"


def test_impossible_training_settings_are_usage_errors(recordings: Path, tmp_path: Path):
    required = ["--data", str(recordings), "--run_dir", str(tmp_path / "run"), "--output", str(tmp_path / "a.pth")]
    for flags, words in (
        (["--frames", "1"], "shorter than the longest spectral window"),
        (["--loss.floor", "0"], "floor must be above 0"),
        (["--preset", "tiny"], "preset"),
        (["--output", "a.pkl"], r"\.safetensors or \.pth"),
        (["--data", ""], "--data is missing"),
    ):
        with pytest.raises(UsageError, match=words):
            command.main(["train", *required, *flags])


def test_wrong_calls_and_wrong_files_are_one_line(weights: Path, recordings: Path, tmp_path: Path):
    latent = tmp_path / "z.npy"
    np.save(latent, np.zeros((3, 7), np.float32))
    np.savez(tmp_path / "z.npz", latents=np.zeros((1, 3, 7), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "empty").mkdir()
    output = tmp_path / "out.wav"
    cases: list[tuple[type[Exception], str, dict[str, object]]] = [
        (FileNotFoundError, "no such file", {"name": "encode", "input": tmp_path / "no.wav", "output": latent}),
        (FileNotFoundError, "in this folder", {"name": "encode", "input": tmp_path / "empty", "output": tmp_path}),
        (UsageError, "give a folder", {"name": "encode", "input": recordings, "output": latent}),
        (ValueError, "7 channels", {"name": "decode", "input": latent, "output": output}),
        (ValueError, "cannot be read", {"name": "decode", "input": tmp_path / "objects.npy", "output": output}),
        (ValueError, r"z\.npz: .* 7 ", {"name": "decode", "input": tmp_path / "z.npz", "output": output}),
        (ValueError, r"z\.npz: .* 7 ", {"name": "decompress", "input": tmp_path / "z.npz", "output": output}),
        (UsageError, "16 bits", {"name": "decode", "input": latent, "output": output, "watermark": "102"}),
        (ValueError, "unknown suffix", {"name": "decode", "input": latent, "output": tmp_path / "out.xyz"}),
        (
            ValueError,
            "DAC codes only",
            {"name": "encode", "input": recordings / "a.wav", "output": tmp_path / "a.dac"},
        ),
        (ValueError, "no codebooks", {"name": "encode", "input": recordings, "output": tmp_path, "n_quantizers": 2}),
        (
            UsageError,
            "compress can write",
            {"name": "compress", "input": recordings / "a.wav", "output": tmp_path / "a.npy"},
        ),
    ]
    for error, words, flags in cases:
        name = str(flags.pop("name"))
        with pytest.raises(error, match=words) as caught:
            call(name, codec=weights, **flags)
        assert "\n" not in str(caught.value)
    for argv, words in {("convert", "--input", "x"): "nothing to write", ("encode",): "required"}.items():
        with pytest.raises(UsageError, match=words):
            command.main(list(argv))
    with pytest.raises(UsageError, match=r"\.safetensors or \.pth"):
        call("convert", input=weights, output=output)
    assert not output.exists()


def test_inputs_with_the_same_output_are_rejected(weights: Path, recordings: Path, tmp_path: Path):
    soundfile.write(recordings / "a.flac", np.zeros(800), 8000)
    with pytest.raises(ValueError, match="rename them"):
        call("encode", input=recordings, output=tmp_path / "z", codec=weights)


def test_load_codec_returns_a_codec(weights: Path):
    assert isinstance(load_codec(weights), Codec)


def npy(header: bytes, payload: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + payload


@pytest.mark.parametrize(
    "content",
    [
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 5)}\n", bytes(40)),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (\n", bytes(40)),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 5)}\n", bytes(40)),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 5)}\n", bytes(40)),
        npy(b"(" * 5000, bytes(40)),
        b"",
    ],
)
def test_a_damaged_npy_is_one_line_and_allocates_nothing(weights: Path, tmp_path: Path, content: bytes):
    (tmp_path / "z.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"z\.npy: cannot be read as latents"):
        call("decode", input=tmp_path / "z.npy", output=tmp_path / "a.wav", codec=weights)
    assert not (tmp_path / "a.wav").exists()
