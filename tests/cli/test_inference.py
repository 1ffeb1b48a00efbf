"""inference.py: flags, exit codes, one-line errors for bad input, and no output file without speech."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echotts import synthesis
from echotts.cli.app import run
from echotts.cli.inference import main
from echotts.flow.options import SamplerConfig
from echotts.synthesis.length import AutoDuration
from tests.tiny_speaker import LinearCodec, tiny_tts

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def tts():
    return tiny_tts()


@pytest.fixture
def call(tts, monkeypatch, capfd):
    """Runs the command on the tiny model; gives (exit code, standard output, standard error)."""
    real_load = synthesis.EchoTTS.load

    def load(checkpoint=None, codec=None, **options):
        return tts if checkpoint is None else real_load(checkpoint, codec, **options)

    monkeypatch.setattr(synthesis.EchoTTS, "load", load)
    monkeypatch.setattr("echotts.synthesis.batch.SLOW_COMPILE_S", 600.0)  # however slow this machine is just now

    def run_it(*arguments):
        with pytest.raises(SystemExit) as stop:
            run(main, [str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return stop.value.code, out, err

    return run_it


def test_without_a_name_the_speech_is_in_out_wav_of_this_folder(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("--text", "one two", "--steps", "2")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_text_is_synthesised_to_a_file_and_the_speed_is_printed(call, tmp_path, suffix):
    output = tmp_path / "new" / f"out.{suffix}"
    code, out, err = call("--text", "one two", "--output", output, "--steps", "2")
    assert (code, err) == (0, "")
    assert out.startswith(f"{output}: ")
    assert "s of audio per second" in out
    assert len(soundfile.read(output)[0]) > 0
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_the_same_seed_writes_the_same_bytes_and_hyphens_work_as_well(call, tmp_path):
    (tmp_path / "text.txt").write_text("one two\n")
    usual = ("--text_file", tmp_path / "text.txt", "--steps", "2", "--seed", "3")
    first = call(*usual, "--output", tmp_path / "a.wav", "--save_latents", tmp_path / "z.npy")
    second = call(
        "--text", "one two", "--steps", "2", "--seed", "3", "--output", tmp_path / "b.wav", "--cfg-scale", "3.0"
    )
    other = call("--text", "one two", "--steps", "2", "--seed", "4", "--output", tmp_path / "c.wav")
    assert [result[0] for result in (first, second, other)] == [0, 0, 0]
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert (tmp_path / "a.wav").read_bytes() != (tmp_path / "c.wav").read_bytes()
    latents = np.load(tmp_path / "z.npy")
    assert latents.dtype == np.float32
    assert len(latents) * LinearCodec.hop_length == soundfile.info(tmp_path / "a.wav").frames


def test_every_guidance_flag_reaches_the_sampler(call, tmp_path, tts, monkeypatch):
    seen = {}
    real = tts.pieces
    monkeypatch.setattr(tts, "pieces", lambda *args, **options: seen.update(options) or real(*args, **options))
    code, _, err = call(
        *("--text", "one", "--output", tmp_path / "a.wav", "--steps", 5, "--text_scale", 2, "--speaker_scale", 5),
        *("--guidance_interval", 0.25, 0.75, "--time_scale", 0.999, "--truncation", 0.8, "--duration", 0.8),
        *("--solver", "ab2", "--grid", "epss", "--sway", -1, "--alternating", "True", "--rescale", 1.2, 3),
        *("--speaker_kv_scale", 1.5, "--speaker_kv_layers", 1, "--speaker_kv_until", 0.8),
    )
    assert (code, err) == (0, "")
    wanted = SamplerConfig(
        steps=5,
        text_scale=2.0,
        speaker_scale=5.0,
        interval=(0.25, 0.75),
        time_scale=0.999,
        truncation=0.8,
        solver="ab2",
        grid="epss",
        sway=-1.0,
        alternating=True,
        rescale=(1.2, 3.0),
        speaker_kv_scale=1.5,
        speaker_kv_layers=1,
        speaker_kv_until=0.8,
    )
    assert (seen["seed"], seen["duration"], seen["sampler"]) == (42, 0.8, wanted)


def test_flags_of_length_and_speed_reach_the_model_and_auto_is_the_default(call, tmp_path, tts, monkeypatch):
    seen = {}
    real = tts.pieces
    monkeypatch.setattr(tts, "pieces", lambda *args, **options: seen.update(options) or real(*args, **options))
    usual = ("--text", "one", "--output", tmp_path / "a.wav", "--steps", 1)
    assert call(*usual)[0] == 0
    assert (seen["duration"], seen["speed"]) == (AutoDuration(), 1.0)
    usual_s = soundfile.info(tmp_path / "a.wav").duration
    flags = ("--duration", "auto", "--duration_scale", 2, "--duration_min", 1, "--duration_max", 9, "--speed", 0.5)
    assert call(*usual, *flags)[0] == 0
    assert (seen["duration"], seen["speed"]) == (AutoDuration(scale=2.0, least_s=1.0, most_s=9.0), 0.5)
    assert soundfile.info(tmp_path / "a.wav").duration == pytest.approx(2 * usual_s)


def test_output_levels_are_chosen_by_flag(call, tmp_path):
    for level in ("peak", "rms", "clip", "loudness", "none"):
        code, _, err = call("--text", "one", "--output", tmp_path / f"{level}.wav", "--steps", 1, "--normalise", level)
        assert (code, err) == (0, "")
    peak = np.abs(soundfile.read(tmp_path / "peak.wav")[0]).max()
    assert peak == pytest.approx(10 ** (-1 / 20), abs=1e-3)


WRONG_CALLS = {
    "--text one --output a.wav --nonsense 3": "nonsense",
    "--output a.wav": "give either --text or --text_file or --script",
    "--text one --text_file text.txt --output a.wav": "give either --text or --text_file or --script",
    "--text= --output a.wav": "--text is empty",
    "--text one --output a.wav --steps 0": "--steps 0 must be at least 1",
    "--text one --output a.wav --steps many": "many",
    "--text one --output a.wav --preset fastest": "sampler preset 'fastest': choose one of draft",
    "--text one --output a.wav --preset student --steps 5": "sampler steps 5: a student takes 1, 2, 4, 8, 16 or 32",
    "--text one --output a.wav --preset student --text_scale 2": "text_scale: a student has guidance and steps in",
    "--text one --output a.wav --grid epss": "the epss grid knows 5, 6, 7, 10, 12, 16 steps, not 32",
    "--text one --output a.wav --duration -1": "duration -1.0: give the maximum duration in seconds, above 0, or",
    "--text one --output a.wav --duration soon": "soon",
    "--text one --output a.wav --duration 3 --duration_scale 2": "--duration 3: --duration_scale, _min and _max are",
    "--text one --output a.wav --duration_min 3 --duration_max 2": "most duration 2.0 s: give seconds above 0",
    "--text one --output a.wav --speed 3": "speed 3.0: give a factor from 0.5 to 2.0",
    "--text one --output a.wav --seed -1": "--seed -1 must not be negative",
    "--text one --output a.wav --normalise loud": "loud",
}


@pytest.mark.parametrize("line", WRONG_CALLS)
def test_wrong_calls_are_one_line_and_exit_2(call, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*line.split())
    assert (code, out) == (2, "")
    assert err.startswith("echotts: ")
    assert err.count("\n") == 1
    assert WRONG_CALLS[line] in err
    assert not list(tmp_path.iterdir())


def bad_inputs(folder):
    """Arguments beside --steps 1, and the words that must come back."""
    soundfile.write(folder / "silent.wav", np.zeros(8000), 8000)
    soundfile.write(folder / "short.wav", np.full(2000, 0.1), 8000)
    (folder / "noise.mp3").write_bytes(b"no recording at all" * 50)
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "cut.safetensors").write_bytes(b"\x00" * 20)
    (folder / "file").write_text("in the way")
    text, output = ("--text", "one"), ("--output", folder / "out.wav")
    return [
        ((*text, *output, "--speaker_ref", folder / "silent.wav"), "silent.wav: is silent"),
        ((*text, *output, "--speaker_ref", folder / "short.wav"), "short.wav: is 0.25 s long: a reference needs"),
        ((*text, *output, "--speaker_ref", folder / "noise.mp3"), "noise.mp3: cannot be read as a recording"),
        ((*text, *output, "--speaker_ref", folder / "none.wav"), "none.wav: no such recording"),
        ((*text, *output, "--preset", "student"), "has no student: make one with echotts train --distil_from"),
        ((*output, "--text", "?! ..."), "contains no letter or digit"),
        ((*output, "--text", "one", "--voice", "nobody"), "voice 'nobody': there is none of that name"),
        ((*output, "--text", "one", "--voice", "a/b"), "a name has letters"),
        ((*output, "--text_file", folder / "empty.txt"), "empty.txt: the file is empty"),
        ((*output, "--text_file", folder / "latin.txt"), "latin.txt, line 1, byte 1 (0xe9): not UTF-8"),
        ((*output, "--text_file", folder / "none.txt"), "none.txt"),
        ((*text, *output, "--checkpoint", folder / "none.safetensors"), "none.safetensors: no such checkpoint"),
        ((*text, *output, "--checkpoint", folder / "cut.safetensors"), "cut.safetensors"),
        ((*text, *output, "--checkpoint", folder), "no checkpoint found"),
        ((*text, *output, "--time_scale", "2"), "time_scale 2.0"),
        ((*text, *output, "--guidance_interval", "0.9", "0.1"), "guidance interval 0.9..0.1"),
        ((*text, "--output", folder / "out.xyz"), "out.xyz: unknown suffix '.xyz'"),
        ((*text, "--output", folder / "file" / "out.wav"), "out.wav: cannot be written: "),
        ((*text, "--output", "/proc/out.wav"), "/proc/out.wav: "),
    ]


def test_bad_inputs_are_one_line_each_and_leave_no_file(call, tmp_path):
    for arguments, words in bad_inputs(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = call(*arguments, "--steps", 1)
        assert code in (1, 2), arguments
        assert out == ""
        assert err.startswith("echotts: "), err
        assert err.count("\n") == 1, err
        assert words in err
        assert sorted(tmp_path.rglob("*")) == before


def test_outputs_are_checked_before_a_model_is_loaded(call, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis.EchoTTS, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    wav, voice = tmp_path / "out.wav", tmp_path / "voice.wav"
    voice.write_bytes(b"voice")
    (tmp_path / "link.wav").symlink_to("/dev/full")
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "file").touch()
    for arguments, words in [
        (("--output", wav, "--save_latents", "/dev/full"), "/dev/full: cannot be written: it is a device"),
        (("--output", tmp_path / "link.wav"), "link.wav: cannot be written: it is a device"),
        (("--output", tmp_path / "pipe.wav"), "pipe.wav: cannot be written: it is a pipe"),
        (("--output", wav, "--save_latents", wav), "is the same file as"),
        (("--output", voice, "--speaker_ref", voice), "voice.wav, which is read: choose another name"),
        (("--output", wav, "--save_latents", tmp_path / "file" / "z.npy"), "z.npy: cannot be written"),
        (("--output", tmp_path / "a.mp3", "--mp3_rate", 100), "mp3_rate 100 kbit/s: choose one of"),
    ]:
        code, out, err = call("--text", "one", *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert words in err
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert voice.read_bytes() == b"voice"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link.wav", "pipe.wav", "voice.wav"]


def test_a_saved_voice_is_not_replaced_by_an_output(call, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = tmp_path / "echotts" / "voices" / "anna.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"voice")
    arguments = ("--text", "one", "--voice", "anna", "--output", tmp_path / "a.wav", "--save_latents", path)
    code, _, err = call(*arguments)
    assert (code, path.read_bytes()) == (1, b"voice")
    assert "anna.safetensors, which is read: choose another name" in err


def test_an_mp3_has_the_bit_rate_of_the_flag(call, tmp_path):
    sizes = []
    for rate in (64, 32):
        assert call("--text", "one", "--output", tmp_path / "a.mp3", "--steps", 1, "--mp3_rate", rate)[0] == 0
        sizes.append((tmp_path / "a.mp3").stat().st_size)
    assert sizes[0] == pytest.approx(2 * sizes[1], rel=0.15)


def test_a_crash_while_speaking_leaves_no_file(call, tmp_path, tts, monkeypatch):
    def broken(latents):
        raise MemoryError("codec")

    monkeypatch.setattr(tts.codec, "decode", broken)
    code, _, err = call("--text", "one", "--output", tmp_path / "out.wav", "--steps", 1)
    assert (code, err) == (1, "echotts: out of memory codec\n")
    assert not list(tmp_path.iterdir())


def test_help_lists_units_and_defaults_and_the_script_exists():
    done = subprocess.run(
        [sys.executable, "inference.py", "--help"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = re.sub(r"[│\s]+", " ", done.stdout)
    for words in (
        "seconds",
        "LUFS",
        "the preset's, 32",
        "the preset's, 3",
        "default: auto",
        "default: 42",
        "None: peak",
    ):
        assert words in told
