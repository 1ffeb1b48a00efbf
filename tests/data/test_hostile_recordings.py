"""`data prepare` on truncated, mislabelled, endless or non-regular files: each is rejected with its cause."""

import io
import json
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import soundfile

from echotts.data.prepare.pipeline import Settings, prepare
from tests.data.recorded import RATE, CosineCodec, tone

CASES = Path(__file__).parent.parent / "audio" / "cases"


def encoded(samples: np.ndarray, rate: int = RATE, kind: str = "WAV") -> bytearray:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return bytearray(buffer.getvalue())


def flac_that_claims(data: bytearray, rate: int, frames: int) -> bytes:
    """STREAMINFO: 20 bits of rate, 8 of channels and depth, 36 of length."""
    field = int.from_bytes(data[18:26], "big") & (0xFF << 36) | rate << 44 | frames
    return bytes(data[:18] + field.to_bytes(8, "big") + data[26:])


def wav_that_claims(rate: int) -> bytes:
    data = encoded(tone(1.0, 200))
    at = data.index(b"fmt ") + 12
    return bytes(data[:at] + rate.to_bytes(4, "little") + data[at + 4 :])


def test_hostile_recordings_are_counted_rejections_and_the_good_ones_are_kept(tmp_path: Path) -> None:
    silence = encoded(np.zeros(2_000_000, "i2"), 48000, "FLAC")
    files = {
        "one_hertz.flac": (flac_that_claims(silence, 1, 2_000_000), "unreadable_audio"),
        "false_length.flac": (flac_that_claims(encoded(tone(1.0, 200), RATE, "FLAC"), RATE, 2**36 - 1), "too_long"),
        "promised.flac": (flac_that_claims(encoded(tone(1.0, 200), RATE, "FLAC"), RATE, 20 * RATE), "unreadable_audio"),
        "long.flac": (bytes(silence), "too_long"),
        "unknown_and_long.flac": (flac_that_claims(silence, 48000, 0), "too_long"),
        "fast.wav": (wav_that_claims(2**31 - 1), "unreadable_audio"),
        "slow.wav": (wav_that_claims(2), "unreadable_audio"),
        "wide.wav": (bytes(encoded(np.zeros((4000, 40), "i2"))), "unreadable_audio"),
        "cut.wav": (bytes(encoded(tone(2.0, 200))[: RATE * 2]), "unreadable_audio"),
        "trunc.mp3": ((CASES / "trunc_CONSTANT.mp3").read_bytes(), "unreadable_audio"),
        "text.wav": (b"no recording" * 100, "unreadable_audio"),
        "empty.ogg": (b"", "unreadable_audio"),
    }
    source = tmp_path / "in"
    source.mkdir()
    for name, (content, _) in files.items():
        (source / name).write_bytes(content)
    expected = {name: cause for name, (_, cause) in files.items()}
    os.mkfifo(source / "pipe.wav")
    (source / "device.wav").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket.wav"))
    expected |= dict.fromkeys(("pipe.wav", "device.wav", "socket.wav"), "unreadable_audio")
    good = ("antiphase.wav", "chain2.ogg", "flac_unknowntotal.flac")
    for name in good:
        shutil.copy(CASES / name, source / name)
    for name in (*expected, *good):
        (source / name).with_suffix(".txt").write_text(f"The text of {name}.")
    began = time.thread_time()
    summary = prepare(str(source), tmp_path / "out", CosineCodec(), Settings())
    assert time.thread_time() - began < 20
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {Path(line["source"]).name: line["cause"] for line in rejected} == expected
    assert summary.samples == len(good)
    assert all("\n" not in line["detail"] for line in rejected)
