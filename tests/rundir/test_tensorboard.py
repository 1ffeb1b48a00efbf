"""TensorBoard's event files, read back by the definition of their format."""

import struct
import sys
from pathlib import Path

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from echotts.cli import train as command
from echotts.rundir.metrics import MetricsWriter
from echotts.rundir.tensorboard import TensorBoard, TensorBoardMissingError


def checksum(data: bytes) -> int:
    """As TFRecord masks it: rotated by 15 bits, plus a constant."""
    plain = crc32c(data)
    return ((plain >> 15 | plain << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path: Path) -> list[Event]:
    """Records of length, its checksum, an event, its checksum."""
    data, found = path.read_bytes(), []
    while data:
        (size, size_sum) = struct.unpack("<QI", data[:12])
        body, (body_sum,) = data[12 : 12 + size], struct.unpack("<I", data[12 + size : 16 + size])
        assert (size_sum, body_sum) == (checksum(data[:8]), checksum(body))
        found.append(Event.FromString(body))
        data = data[16 + size :]
    return found


def test_every_line_is_in_the_event_file_once_it_is_written(tmp_path):
    with MetricsWriter(tmp_path, beside=TensorBoard(tmp_path, 40)) as writer:
        writer.event(40, "resumed", "after step 40")
        writer.write(50, {"loss/train": 0.25, "compile/count": 2})
        (path,) = (tmp_path / "tensorboard").iterdir()
        version, start, resumed, line = events(path)  # before it is closed: a run may be killed
    assert path.name.startswith("events.out.tfevents.")
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 41)
    assert resumed.summary.value[0].tensor.string_val[0] == b"resumed: after step 40"
    assert resumed.summary.value[0].metadata.plugin_data.plugin_name == "text"
    assert line.step == 50 and line.wall_time > 1e9
    assert {value.tag: value.simple_value for value in line.summary.value} == {"loss/train": 0.25, "compile/count": 2.0}


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    (tmp_path / "shard.tar").write_bytes(bytes(1024))
    with pytest.raises(TensorBoardMissingError, match=r"pip install 'echotts\[tensorboard\]'"):
        command.main([f"--data={tmp_path}", f"--run_dir={tmp_path / 'run'}", "--run.tensorboard"])
    assert not (tmp_path / "run").exists()
