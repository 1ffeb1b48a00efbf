"""Writing recordings: formats, bit rates, atomicity."""

import numpy as np
import pytest
import soundfile

from echotts import __version__, audio
from tests.audio.signals import RATE, noise, tone


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
    assert soundfile.info(first).duration == pytest.approx(10.0, abs=0.15)
    assert sorted(path.name for path in first.parent.iterdir()) == [first.name]


def test_a_failed_write_is_a_one_line_error_and_leaves_no_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    bad = tone()
    bad[:3] = np.inf
    cases = [
        (tmp_path / "a.xyz", tone(), "unknown suffix '.xyz': write one of .wav, .flac, .ogg, .mp3"),
        (tmp_path / "a.wav", bad, "3 of 16000 samples are not finite"),
        (tmp_path / "a.wav", np.zeros(0, np.float32), "no samples"),
        (tmp_path / "file" / "a.wav", tone(), "a.wav: cannot be written: (not a directory|file exists)"),
        (tmp_path / "folder.wav", tone(), "cannot be written: it is a folder"),
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
    with pytest.raises(OSError, match=r"a\.wav: cannot be written: no space left on device"):
        audio.write_audio(path, tone(), RATE)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_rate_that_the_format_does_not_support_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="MP3 cannot hold 12345 Hz"):
        audio.write_audio(tmp_path / "a.mp3", tone(), 12345)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rate", "kbps", "written"),
    [(48000, 320, 320), (48000, 64, 64), (48000, 32, 32), (44100, 128, 128), (24000, 320, 160), (24000, 48, 48),
     (16000, 8, 8), (16000, 320, 160), (8000, 320, 64), (44100, 144, 128)],
)  # fmt: skip
def test_an_mp3_has_the_bit_rate_that_is_asked_for_up_to_what_its_sample_rate_allows(tmp_path, rate, kbps, written):
    path = tmp_path / "a.mp3"
    audio.write_audio(path, noise(4 * rate), rate, mp3_rate=kbps)
    assert path.stat().st_size * 8 / 4 / 1000 == pytest.approx(written, rel=0.08)
    assert soundfile.info(path).duration == pytest.approx(4.0, abs=0.15)


def test_an_invalid_mp3_bit_rate_is_rejected_with_the_valid_ones(tmp_path):
    with pytest.raises(ValueError, match=r"mp3_rate 300 kbit/s: choose one of 8, 16, .*, 256, 320"):
        audio.write_audio(tmp_path / "a.mp3", tone(), RATE, mp3_rate=300)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_synthetic_speech_says_so_and_names_its_maker_in_the_tags_of_every_format(tmp_path, suffix):
    av = pytest.importorskip("av")
    path, other = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    audio.write_audio(path, tone(), RATE, model="demo\nStimme 日本, step 5")
    audio.write_audio(other, tone(), RATE)
    wanted = f"synthetic: yes; made by echotts {__version__}; model: demo?Stimme ??, step 5"
    with soundfile.SoundFile(path) as file:
        assert file.comment == wanted
        assert suffix == "mp3" or file.software.startswith(f"echotts {__version__}")
    with av.open(str(path)) as file:  # FFmpeg's reader
        found = {name.lower(): value for name, value in {**file.metadata, **file.streams[0].metadata}.items()}
    assert found["comment"] == wanted
    assert soundfile.SoundFile(other).comment == ""
    np.testing.assert_array_equal(audio.read_audio(path, RATE), audio.read_audio(other, RATE))
