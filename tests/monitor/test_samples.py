"""Speech samples: the index, and the pictures."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import soundfile

from echotts.monitor.folders import LocalFolder
from echotts.monitor.samples import Samples, draw
from echotts.spectrogram import BANDS, PICTURE_WIDTH, picture_filters
from tests.monitor.fake_run import make_samples


def pixels(png: bytes) -> np.ndarray:
    """(height, width, 3) of an unfiltered PNG; checks the checksum of each chunk."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    place, parts = 8, {}
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        kind, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length : place + 12 + length]) == (zlib.crc32(kind + data),)
        parts[kind] = data
        place += 12 + length
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def tone(frequency_hz: float, rate: int = 16_000, seconds: float = 1.0) -> bytes:
    written = io.BytesIO()
    time_s = np.arange(int(rate * seconds)) / rate
    soundfile.write(written, 0.5 * np.sin(2 * np.pi * frequency_hz * time_s), rate, format="WAV")
    return written.getvalue()


def test_samples_are_listed_newest_first_with_their_texts_and_references(tmp_path):
    for step in (500, 1000):
        make_samples(tmp_path, step)
    samples = Samples(LocalFolder(tmp_path))
    (newest, items), (oldest, _) = samples.steps()
    assert (newest, oldest) == (1000, 500)
    assert [item.text for item in items] == ["seven three one nine", "zero zero four"]
    assert [samples.seconds(item) for item in items] == [1.0, 1.0]
    assert items[1].reference_id is None
    reference = samples.find(items[0].reference_id)
    assert reference is not None and reference.path.endswith("step_00001000/reference.wav")
    assert samples.audio(reference).startswith(b"RIFF")
    assert Samples(LocalFolder(tmp_path)).find(items[0].id) == items[0]  # ids outlive the server


def test_files_that_are_not_samples_are_not_listed(tmp_path):
    folder = make_samples(tmp_path, 1)
    (tmp_path / "secret.wav").write_bytes(tone(100))
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "notes.html").write_text("<script>")
    (folder / "folder.wav").mkdir()
    (tmp_path / "samples" / ".step_00000002.partial").mkdir()
    samples = Samples(LocalFolder(tmp_path))
    [(_, items)] = samples.steps()
    assert [item.path.rpartition("/")[2] for item in items] == ["00_seven-three-one-nine.wav", "01_zero-zero-four.wav"]
    assert samples.find("../secret.wav") is None and samples.find("") is None


@pytest.mark.parametrize(
    "said", ["{", "[]", '{"00_seven-three-one-nine.wav": 7}', '{"00_seven-three-one-nine.wav": {"text": []}}']
)
def test_samples_without_readable_sentences_have_no_text(tmp_path, said):
    (make_samples(tmp_path, 1) / "sentences.json").write_text(said)
    [(_, items)] = Samples(LocalFolder(tmp_path)).steps()
    assert [item.text for item in items] == ["", "", ""]


@pytest.mark.parametrize("frequency_hz", [100.0, 1000.0, 6000.0])
def test_a_tone_is_a_bright_line_at_its_height(frequency_hz):
    picture = pixels(draw(tone(frequency_hz)))
    assert picture.shape == (BANDS, PICTURE_WIDTH, 3)
    brightest = BANDS - 1 - picture[:, 100:400].sum(axis=(1, 2), dtype=int).argmax()
    assert abs(brightest - picture_filters(16_000)[:, round(frequency_hz * 1024 / 16_000)].argmax()) <= 1


def test_time_runs_to_the_right():
    written = io.BytesIO()
    silence, sound = np.zeros(8000), soundfile.read(io.BytesIO(tone(1000)))[0][:8000]
    soundfile.write(written, np.concatenate([silence, sound]), 16_000, format="WAV")
    picture = pixels(draw(written.getvalue())).sum(axis=2, dtype=int)
    assert picture[:, :200].max() < picture[:, 320:500].max() / 4


def test_no_band_is_empty_and_the_filters_cover_the_range():
    for rate in (8_000, 16_000, 48_000):
        filters = picture_filters(rate)
        assert (filters.sum(axis=1) > 0).all()
        assert (filters[:, 10:-2].sum(axis=0) > 0).all()


def test_a_file_without_sound_has_no_picture_and_no_length(tmp_path):
    assert draw(b"") is draw(b"RIFFgarbage") is draw(tone(100, seconds=0.0)) is None
    folder = make_samples(tmp_path, 1)
    (folder / "02_bad.wav").write_bytes(b"RIFF")
    samples = Samples(LocalFolder(tmp_path))
    [(_, items)] = samples.steps()
    assert samples.seconds(items[2]) is None and samples.picture(items[2]) is None
    assert samples.picture(items[0]) is samples.picture(items[0])  # kept


def test_a_rewritten_sample_is_redrawn(tmp_path):
    samples = Samples(LocalFolder(tmp_path))
    make_samples(tmp_path, 1)
    before = samples.picture(samples.steps()[0][1][0])
    make_samples(tmp_path, 1, seconds=2.0)
    item = samples.steps()[0][1][0]
    assert samples.picture(item) != before and samples.seconds(item) == 2.0
    assert json.loads((tmp_path / "samples" / "step_00000001" / "sentences.json").read_text())
