"""Reading recordings: all formats, complete data, no trust in headers."""

import io
import os
import re
import socket
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts import audio
from tests.audio.signals import RATE, noise, tone

CASES = Path(__file__).parent / "cases"


def encoded(samples, rate=RATE, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **options)
    return bytearray(buffer.getvalue())


def refusal(data, **options):
    with pytest.raises(ValueError) as caught:
        audio.read_audio(io.BytesIO(data), RATE, name="a.wav", **options)
    message = str(caught.value)
    assert message.startswith("a.wav: ") and "\n" not in message
    return message


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


def test_an_open_file_is_read_and_named_in_messages():
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), RATE, format="FLAC")
    buffer.seek(0)
    assert len(audio.read_audio(buffer, 8000)) == 8000
    with pytest.raises(ValueError, match=r"^us-0001\.opus: cannot be read"):
        audio.read_audio(io.BytesIO(b"nothing"), RATE, name="us-0001.opus")


def test_unreadable_recordings_are_rejected_with_a_one_line_error_that_names_them(tmp_path, capfd):
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
    soundfile.write(tmp_path / "huge.wav", np.float32(1e29) * tone(), RATE, subtype="FLOAT")
    assert "above 1e+06 times full scale" in message("huge.wav")
    assert capfd.readouterr().err == ""


def test_a_flac_that_does_not_know_its_length_is_read_to_its_end():
    assert len(audio.read_audio(CASES / "flac_unknowntotal.flac", RATE)) == 2 * RATE


def test_each_stream_of_a_chained_ogg_is_read():
    assert len(audio.read_audio(CASES / "chain2.ogg", RATE)) == 5 * RATE
    chain = encoded(tone(1.0), format="OGG") + encoded(tone(0.5), format="OGG") + encoded(tone(2.0), format="OGG")
    assert len(audio.read_audio(io.BytesIO(chain), RATE)) == 3.5 * RATE
    mixed = encoded(tone(1.0), format="OGG") + encoded(tone(0.5, 8000), 8000, format="OGG")
    assert "different rates" in refusal(mixed)


def test_a_truncated_mp3_is_rejected_with_both_lengths():
    with pytest.raises(ValueError, match=r"trunc_CONSTANT\.mp3: truncated: 7\.60 s of the 20\.00 s"):
        audio.read_audio(CASES / "trunc_CONSTANT.mp3", RATE)
    assert len(audio.read_audio(CASES / "trunc_CONSTANT.mp3", RATE, limit_s=2.0)) == 2 * RATE


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_24"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("RF64", "PCM_16"),
     ("W64", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("WAV", "IMA_ADPCM"),
     ("OGG", "VORBIS"), ("OGG", "OPUS"), ("NIST", "PCM_16"), ("NIST", "ULAW")],
)  # fmt: skip
def test_a_recording_shorter_than_its_header_says_is_refused(kind, subtype):
    whole = encoded(noise(2 * RATE), format=kind, subtype=subtype)
    assert abs(len(audio.read_audio(io.BytesIO(whole), RATE)) - 2 * RATE) < 0.05 * RATE
    for share in (0.95, 0.6, 0.2) if kind != "MP3" else (0.8, 0.6):
        refusal(whole[: int(share * len(whole))])


def ogg_pages(data):
    starts = [found.start() for found in re.finditer(b"OggS", data)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_without_its_last_or_a_middle_page_is_refused(subtype):
    whole = encoded(noise(8 * RATE), format="OGG", subtype=subtype)
    pages = ogg_pages(whole)
    assert len(pages) > 4
    assert "breaks off: the end of its Ogg stream is missing" in refusal(b"".join(pages[:-1]))
    assert "breaks off" in refusal(whole[:-1])
    assert "breaks off" in refusal(whole + whole[:-1])
    assert "s can be decoded, by its pages" in refusal(b"".join(pages[:3] + pages[5:]))
    assert len(audio.read_audio(io.BytesIO(whole + b"TAG" + bytes(125)), RATE)) == 8 * RATE


def test_an_ogg_file_of_very_many_streams_takes_linear_time():
    first, empty = b"OggS\0\2" + bytes(21), b"OggS\0\4" + bytes(21)
    began = time.thread_time()
    assert "a chain of 20000 Ogg streams, at most 1000 are read" in refusal((first + empty) * 20_000)
    assert "at most 1000" in refusal(bytes(encoded(tone(0.1), format="OGG")) * 1001)
    assert time.thread_time() - began < 5


@pytest.mark.parametrize("kind", ["AVR", "IRCAM", "MAT5", "PAF", "PVF", "SVX", "VOC"])
def test_formats_without_a_length_are_rejected_since_truncation_would_go_unnoticed(kind):
    assert f"(of the kind {kind}): give wav" in refusal(encoded(tone(), format=kind, subtype="PCM_16"))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_name_that_is_not_utf8_and_a_resource_fork_beside_it_change_nothing(kind, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfc\xdfe.bin"))
    path.write_bytes(encoded(tone(), format=kind))
    path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    assert len(audio.read_audio(path, RATE)) == RATE


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 0x7FFFF000, 0xFFFFFFFF - 44])
def test_a_wav_that_was_written_to_a_pipe_is_read_as_far_as_it_goes(claimed):
    wav = encoded(tone(2.0), format="WAV", subtype="PCM_16")
    at = wav.index(b"data") + 4
    wav[4:8] = wav[at : at + 4] = claimed.to_bytes(4, "little")
    assert len(audio.read_audio(io.BytesIO(wav), RATE)) == 2 * RATE
    assert len(audio.read_audio(io.BytesIO(wav[: at + 4 + RATE]), RATE)) == RATE // 2


def mp3_of_two_bit_rates(loud_first: bool) -> tuple[bytes, bytes]:
    """10 s of noise and 10 s of silence at a variable bit rate: with its Xing header, and without."""
    sound = np.concatenate([noise(10 * RATE, 0.3), np.zeros(10 * RATE, np.float32)])
    whole = encoded(
        sound if loud_first else sound[::-1], format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE"
    )
    kbps = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[whole[2] >> 4]  # MPEG 2, layer III
    bare = whole[72_000 * kbps // RATE + (whole[2] >> 1 & 1) :]
    return bytes(whole), bytes(bare)


@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_without_a_header_is_read_to_its_end_whatever_its_first_bit_rate(loud_first):
    whole, bare = mp3_of_two_bit_rates(loud_first)
    assert b"Xing" in whole[:64] and b"Xing" not in bare
    assert len(audio.read_audio(io.BytesIO(whole), RATE)) == 20 * RATE
    tag = b"ID3\x03\0\0\0\0\0\x10" + bytes(16)
    for data in (bare, tag + bare):
        assert len(audio.read_audio(io.BytesIO(data), RATE)) == pytest.approx(20 * RATE, abs=0.2 * RATE)
    assert len(audio.read_audio(io.BytesIO(bare + bare), RATE)) == pytest.approx(40 * RATE, abs=0.4 * RATE)


def test_joined_mp3_files_are_rejected_because_the_first_header_has_a_shorter_length():
    whole, _ = mp3_of_two_bit_rates(True)
    assert "has more audio than its mp3 header says" in refusal(whole + whole)
    assert len(audio.read_audio(io.BytesIO(whole + b"TAG" + bytes(125)), RATE)) == 20 * RATE


def test_of_channels_that_cancel_one_is_used_with_a_warning(caplog):
    read = audio.read_audio(CASES / "antiphase.wav", RATE)
    left, right = soundfile.read(CASES / "antiphase.wav", dtype="float32")[0].T
    assert np.array_equal(read, left) or np.array_equal(read, right)
    assert "antiphase.wav: channels cancel each other, using only channel" in caplog.text


def test_channels_that_do_not_cancel_are_averaged(caplog):
    left, right, third = noise(), np.random.default_rng(1).standard_normal(RATE).astype(np.float32), tone()
    for channels in ([left, left], [left, np.zeros_like(left)], [left, 0.1 * right], [left, -0.3 * left],
                     [left, right, third], [left, *[np.zeros_like(left)] * 7]):  # fmt: skip
        wav = encoded(np.stack(channels, axis=1), format="WAV", subtype="FLOAT")
        mean = np.mean(channels, axis=0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(audio.read_audio(io.BytesIO(wav), RATE), mean)
    assert caplog.text == ""


def with_flac_header(data, *, rate=None, frames=None):
    """A flac whose STREAMINFO claims something else (20 bits of rate, 36 bits of length)."""
    field = int.from_bytes(data[18:26], "big")
    if rate is not None:
        field = field & ~(0xFFFFF << 44) | rate << 44
    if frames is not None:
        field = field & ~(2**36 - 1) | frames
    return data[:18] + field.to_bytes(8, "big") + data[26:]


def with_wav_header(data, *, rate=None, channels=None):
    at = data.index(b"fmt ") + 8
    if rate is not None:
        data[at + 4 : at + 8] = rate.to_bytes(4, "little")
    if channels is not None:
        data[at + 2 : at + 4] = channels.to_bytes(2, "little")
        data[at + 12 : at + 14] = (2 * channels).to_bytes(2, "little")
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_flac_header(encoded(np.zeros(2_000_000, "i2"), 48000, format="FLAC"), rate=1), "sample rate 1 Hz"),
        (with_flac_header(encoded(np.zeros(500_000, "i2"), 16000, format="FLAC"), frames=2**36 - 1), "promises|most"),
        (with_wav_header(encoded(tone(), format="WAV"), rate=2**31 - 1), "sample rate 2147483647 Hz"),
        (with_wav_header(encoded(tone(), format="WAV"), rate=3999), "sample rate 3999 Hz is outside of 4000 to 384000"),
        (with_wav_header(encoded(tone(), format="WAV"), rate=384001), "sample rate 384001 Hz"),
        (with_wav_header(encoded(tone(), format="WAV"), channels=33), "33 channels, at most 32"),
        (with_wav_header(encoded(tone(), format="WAV"), channels=30000), "channels"),
    ],
)
def test_a_header_with_excessive_sizes_is_rejected_early(data, words):
    began = time.thread_time()
    with pytest.raises(ValueError, match=words):
        audio.read_audio(io.BytesIO(data), RATE)
    assert time.thread_time() - began < 0.5


def test_a_recording_above_the_limit_is_rejected_before_decoding():
    silence = encoded(np.zeros(48000 * 600, "i2"), 48000, format="FLAC")
    began = time.thread_time()
    with pytest.raises(audio.TooLong, match=r"a\.flac: 600\.00 s by its header, at most 30 s"):
        audio.read_audio(io.BytesIO(silence), RATE, max_s=30.0, name="a.flac")
    assert time.thread_time() - began < 0.1
    for unknown in (with_flac_header(silence, frames=0), encoded(noise(40 * RATE, 0.01), format="OGG")):
        with pytest.raises(audio.TooLong, match="longer than the 30 s allowed"):
            audio.read_audio(io.BytesIO(unknown), RATE, max_s=30.0)
    assert len(audio.read_audio(io.BytesIO(encoded(tone(2.0), format="WAV")), RATE, max_s=2.0)) == 2 * RATE


def test_files_that_are_not_regular_are_rejected_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.wav"))
        (tmp_path / "link.wav").symlink_to(tmp_path / "pipe.wav")
        for path in ("/dev/zero", "/dev/null", *sorted(tmp_path.iterdir())):
            with pytest.raises(ValueError, match="is a pipe, socket or device, not a recording"):
                audio.read_audio(path, RATE)
    with pytest.raises(ValueError, match="cannot be read"):
        audio.read_audio("a\0.wav", RATE)


def written_by_ffmpeg(suffix, codec, rate=44100, seconds=2.0):
    buffer = io.BytesIO()
    kinds = {"m4a": "mp4", "aac": "adts", "webm": "webm"}
    with av.open(buffer, "w", format=kinds[suffix]) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        sound = tone(seconds, rate)
        frame = av.AudioFrame.from_ndarray(np.stack([sound, 0.5 * sound]), format="fltp", layout="stereo")
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize(("suffix", "codec", "rate"), [("m4a", "aac", 44100), ("aac", "aac", 44100),
                                                       ("webm", "libopus", 48000)])  # fmt: skip
def test_m4a_aac_and_webm_are_read_where_pyav_is(tmp_path, suffix, codec, rate, monkeypatch):
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(written_by_ffmpeg(suffix, codec, rate))
    read = audio.read_audio(path, RATE)
    assert len(read) == pytest.approx(2 * RATE, abs=0.1 * RATE)
    assert np.abs(read[4000:12000]).max() == pytest.approx(0.225, abs=0.02)
    assert np.argmax(np.abs(np.fft.rfft(read[4000:12000]))) == 220
    with pytest.raises(audio.TooLong):
        audio.read_audio(path, RATE, max_s=1.0)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=rf"clip\.{suffix}: m4a, aac and webm need PyAV: pip install 'echotts\[m4a\]'"):
        audio.read_audio(path, RATE)


def test_a_truncated_m4a_is_a_one_line_error(capfd):
    whole = written_by_ffmpeg("m4a", "aac")
    for size in (16, 100, len(whole) // 2):
        refusal(whole[:size])
    assert capfd.readouterr().err == ""


ORIGINALS = {
    "wav": encoded(tone(0.2), format="WAV"),
    "flac": encoded(tone(0.2), format="FLAC"),
    "ogg": encoded(tone(0.2), format="OGG"),
    "opus": encoded(tone(0.2), format="OGG", subtype="OPUS"),
    "mp3": encoded(tone(0.2), format="MP3"),
    "aiff": encoded(tone(0.2), format="AIFF"),
    "m4a": bytearray(written_by_ffmpeg("m4a", "aac", seconds=0.2)),
    "webm": bytearray(written_by_ffmpeg("webm", "libopus", 48000, seconds=0.2)),
}


def damaged(random, data):
    """Changes some bytes, mostly in the header; sometimes deletes or duplicates a piece."""
    data = bytearray(data)
    for _ in range(random.randint(1, 6)):
        data[random.randrange(min(len(data), random.choice([64, 512, len(data)])))] = random.choice(
            [0, 255, 127, 128, random.randrange(256)]
        )
    if random.random() < 0.3:
        first, last = sorted(random.randrange(len(data)) for _ in range(2))
        data[first:last] = data[first:last] * random.choice([0, 2])
    return bytes(data)


def assert_read_or_one_line(data):
    message, began = "a.wav: ", time.thread_time()
    try:
        audio.read_audio(io.BytesIO(data), RATE, max_s=60.0, name="a.wav")
    except ValueError as error:
        message = str(error)
    assert message.startswith("a.wav: ") and "\n" not in message
    assert time.thread_time() - began < 5


@pytest.mark.parametrize("kind", ORIGINALS)
@settings(max_examples=30, deadline=None)
@given(random=st.randoms(use_true_random=False))
def test_damaged_recordings_are_read_or_refused_in_one_line(kind, random):
    assert_read_or_one_line(damaged(random, ORIGINALS[kind]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_20000_damaged_recordings_are_read_or_refused_in_one_line():
    import random

    for seed in range(20_000):
        source = random.Random(seed)
        assert_read_or_one_line(damaged(source, ORIGINALS[source.choice(list(ORIGINALS))]))
