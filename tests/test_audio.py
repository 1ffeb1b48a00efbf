"""Reading, levels and writing of sound."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts import audio

RATE = 16000


def tone(seconds=1.0, rate=RATE, level=0.3, pitch_hz=440.0):
    return (level * np.sin(2 * np.pi * pitch_hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def noise(samples=RATE, level=0.1):
    return (level * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate"),
    [("wav", "PCM_16", 44100), ("flac", "PCM_24", 48000), ("ogg", "VORBIS", 22050), ("opus", "OPUS", 48000),
     ("mp3", "MPEG_LAYER_III", 16000)],
)  # fmt: skip
def test_every_format_reads_as_mono_at_the_wanted_rate(tmp_path, suffix, subtype, rate):
    path = tmp_path / f"clip.{suffix}"
    stereo = np.stack([tone(rate=rate), 0.5 * tone(rate=rate)], axis=1)
    soundfile.write(path, stereo, rate, format="OGG" if suffix == "opus" else suffix.upper(), subtype=subtype)
    read = audio.read_audio(path, RATE)
    assert read.dtype == np.float32 and abs(len(read) - RATE) < 0.15 * RATE
    middle = read[4000:12000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert np.argmax(spectrum) == 220  # 440 Hz in half a second
    assert np.abs(middle).max() == pytest.approx(0.225, abs=0.02)  # the mean of the two channels


def test_only_the_first_seconds_are_read_under_a_limit(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(2.0), RATE)
    assert len(audio.read_audio(path, RATE, limit_s=0.5)) == RATE // 2
    assert audio.duration_s(path) == 2.0


def test_an_open_file_is_read_and_named_in_messages():
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), RATE, format="FLAC")
    buffer.seek(0)
    assert len(audio.read_audio(buffer, 8000)) == 8000
    with pytest.raises(ValueError, match=r"^us-0001\.opus: cannot be read"):
        audio.read_audio(io.BytesIO(b"nothing"), RATE, name="us-0001.opus")


def test_unreadable_recordings_are_refused_with_one_line_that_names_them(tmp_path, capfd):
    def message(name, kind=ValueError):
        with pytest.raises(kind) as caught:
            audio.read_audio(tmp_path / name, RATE)
        text = str(caught.value)
        assert text.startswith(str(tmp_path / name)) and "\n" not in text
        return text

    assert "no such recording" in message("missing.wav", FileNotFoundError)
    (tmp_path / "folder").mkdir()
    assert "is a folder" in message("folder")
    for name in ("text.mp3", "text.wav", "text.xyz"):
        (tmp_path / name).write_text("not a recording at all " * 200)
        assert "cannot be read" in message(name)
    (tmp_path / "nothing.mp3").write_bytes(b"")
    assert "cannot be read" in message("nothing.mp3")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE)
    assert "is empty" in message("empty.wav")
    broken = tone()
    broken[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, RATE, subtype="FLOAT")
    assert "1 of 16000 samples are not finite" in message("nan.wav")
    assert capfd.readouterr().err == ""


def test_loudness_reaches_the_target_and_the_peak_stays_below_one():
    quiet = noise(level=0.01)
    assert audio.measure_loudness(audio.loudness_normalise(quiet, RATE), RATE) == pytest.approx(-16.0, abs=0.05)
    spike = noise(level=0.01)
    spike[100] = 0.9
    loud = audio.loudness_normalise(spike, RATE, -10.0)
    assert np.abs(loud).max() == pytest.approx(1.0)


def test_a_clip_shorter_than_a_loudness_block_is_measured_like_the_long_one():
    long = tone(2.0)
    assert audio.measure_loudness(long[:1600], RATE) == pytest.approx(audio.measure_loudness(long, RATE), abs=0.3)


@pytest.mark.parametrize("strategy", audio.OUTPUT_STRATEGIES)
@pytest.mark.parametrize("samples", [0, 1, 100, RATE])
def test_silence_survives_every_strategy(strategy, samples):
    silent = np.zeros(samples, np.float32)
    assert np.array_equal(audio.normalise_output(silent, RATE, strategy), silent)
    assert np.array_equal(audio.loudness_normalise(silent, RATE), silent)


@settings(deadline=None, max_examples=20)
@given(level=st.floats(1e-3, 4.0), strategy=st.sampled_from(audio.OUTPUT_STRATEGIES))
def test_output_levels_are_as_documented(level, strategy):
    loud = audio.normalise_output(tone(level=level), RATE, strategy)
    assert loud.dtype == np.float32 and np.isfinite(loud).all()
    if strategy == "peak":
        assert np.abs(loud).max() == pytest.approx(audio.HEADROOM_PEAK, rel=1e-5)
    elif strategy == "rms":
        assert np.sqrt(np.mean(loud**2)) == pytest.approx(audio.OUTPUT_RMS, rel=1e-4)
    elif strategy == "clip":
        assert np.abs(loud).max() == pytest.approx(min(level, audio.HEADROOM_PEAK), rel=1e-2)
    elif strategy == "loudness" and level > 0.01:
        assert audio.measure_loudness(loud, RATE) == pytest.approx(audio.OUTPUT_LOUDNESS_LUFS, abs=0.1)
    elif strategy == "none":
        assert np.array_equal(loud, tone(level=level))


def test_an_unknown_strategy_lists_the_known_ones():
    with pytest.raises(ValueError, match="'loud': choose one of peak, rms, clip, loudness, none"):
        audio.normalise_output(tone(), RATE, "loud")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_the_suffix_decides_the_format_and_the_same_sound_gives_the_same_bytes(tmp_path, suffix):
    first, second = tmp_path / "new" / "deep" / f"a.{suffix}", tmp_path / f"b.{suffix.upper()}"
    sound = np.tile(tone(), 10)
    audio.write_audio(first, sound, RATE)
    audio.write_audio(second, sound, RATE)
    assert first.read_bytes() == second.read_bytes()
    assert soundfile.info(first).format == {"mp3": "MP3", "wav": "WAV", "ogg": "OGG", "flac": "FLAC"}[suffix]
    back = audio.read_audio(first, RATE)
    assert np.abs(back).max() == pytest.approx(audio.HEADROOM_PEAK, abs=0.05)
    assert audio.duration_s(first) == pytest.approx(10.0, abs=0.15)
    assert sorted(path.name for path in first.parent.iterdir()) == [first.name]


def test_what_cannot_be_written_is_one_line_and_leaves_no_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    bad = tone()
    bad[:3] = np.inf
    cases = [
        (tmp_path / "a.xyz", tone(), "unknown suffix '.xyz': write one of .wav, .flac, .ogg, .mp3"),
        (tmp_path / "a.wav", bad, "3 of 16000 samples are not finite"),
        (tmp_path / "a.wav", np.zeros(0, np.float32), "no samples"),
        (tmp_path / "file" / "a.wav", tone(), "cannot be made"),
        (tmp_path / "folder.wav", tone(), "is a folder"),
    ]
    (tmp_path / "folder.wav").mkdir()
    for path, samples, words in cases:
        with pytest.raises((ValueError, OSError), match=words) as caught:
            audio.write_audio(path, samples, RATE)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.wav"]


def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    audio.write_audio(path, tone(), RATE)
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match=r"a\.wav: cannot be written .No space left on device"):
        audio.write_audio(path, tone(), RATE)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_rate_the_format_cannot_hold_is_said(tmp_path):
    with pytest.raises(ValueError, match="MP3 cannot hold 12345 Hz"):
        audio.write_audio(tmp_path / "a.mp3", tone(), 12345)
    assert not list(tmp_path.iterdir())
