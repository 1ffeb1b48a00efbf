"""Local sources and dataset.json: existing metadata are used, missing ones are derived and reported."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from echotts.data.format.info import DatasetInfo, ShardInfo
from echotts.data.remote.dataset import open_dataset
from echotts.data.remote.sources import expand_braces, resolve
from tests.data.corpus import CHANNELS, write_shards, write_tar

INFO = DatasetInfo(
    channels=CHANNELS,
    codec_id="demo",
    weights_hash="ab12",
    sample_rate=16000,
    hop_length=640,
    latent_mean=(0.5,) * CHANNELS,
    latent_std=(1.25,) * CHANNELS,
    hours=0.125,
    lengths=((8, 16, 7), (16, 32, 3)),
    shards=(ShardInfo(name="s-000.tar", samples=10, bytes=512, sha256="cd"),),
)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("{a,b}/{2..1}", ["a/2", "a/1", "b/2", "b/1"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_expand_as_in_a_shell(spec: str, expected: list[str]) -> None:
    assert expand_braces(spec) == expected


def test_folders_globs_and_ranges_name_the_same_shards(tmp_path: Path) -> None:
    files = write_shards(tmp_path, shards=3, samples=1)
    (tmp_path / "notes.txt").write_text("x")
    for spec in (
        str(tmp_path),
        f"{tmp_path}/*.tar",
        f"{tmp_path}/s-{{000..002}}.tar",
        f"{tmp_path}/{{s-000,s-00?}}.tar",
    ):
        assert resolve(spec) == files


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("", ValueError, "no data given"),
        ("https://host/s.tar", ValueError, "https://host/s.tar: this command reads local files"),
        ("hf://datasets/a/b", ValueError, "local files"),
        ("nowhere/*.tar", FileNotFoundError, "nowhere/.*no file matches"),
        ("s-{a}.tar", ValueError, "neither a range"),
        ("s-{0..99999999}.tar", ValueError, "more than"),
    ],
)
def test_an_argument_without_shards_is_a_one_line_error(spec: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        resolve(spec)


def test_dataset_json_keeps_everything(tmp_path: Path) -> None:
    INFO.save(tmp_path / "dataset.json")
    assert DatasetInfo.parse((tmp_path / "dataset.json").read_bytes(), "dataset.json") == INFO
    assert json.loads((tmp_path / "dataset.json").read_text())["codec"] == {"id": "demo", "weights_hash": "ab12"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": "many"}, "channels: Expected int, got str: prepare the data again"),
        ({"channels": 3}, "3 channels, 4 means"),
        ({"lengths": [[1, 2]]}, "lengths"),
        ({"shards": [{"name": "x"}]}, "shards"),
        ({"codec": 7}, "codec"),
        ({"kind": "audio"}, "data prepare"),
    ],
)
def test_a_wrong_dataset_json_is_refused_by_field(tmp_path: Path, change: dict, words: str) -> None:
    path = tmp_path / "dataset.json"
    INFO.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        DatasetInfo.parse(path.read_bytes(), str(path))
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        DatasetInfo.parse(path.read_bytes(), str(path))


def test_a_folder_with_everything_gives_everything(tmp_path: Path) -> None:
    files = write_shards(tmp_path, 1, 10)
    INFO.save(tmp_path / "dataset.json")
    np.save(tmp_path / "silence.npy", np.full((750, CHANNELS), 0.25, np.float16))
    dataset = open_dataset(str(tmp_path))
    assert dataset.files == tuple(files)
    assert dataset.info == INFO
    assert dataset.silence.shape == (750, CHANNELS)
    assert dataset.silence.dtype == np.float32


def test_a_bare_list_of_tars_works_and_reports_missing_metadata(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "a.tar", [])
    write_shards(tmp_path, 1, 2)
    with caplog.at_level(logging.INFO, "echotts.data"):
        dataset = open_dataset(str(tmp_path / "*.tar"))
    assert dataset.info == DatasetInfo(channels=CHANNELS)
    np.testing.assert_array_equal(dataset.silence, np.zeros((1, CHANNELS)))
    assert "no dataset.json" in caplog.text
    assert "padded with zeros" in caplog.text


def test_folders_join_when_their_codec_is_the_same(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, 1, 2)
        INFO.save(tmp_path / name / "dataset.json")
    spec = f"{tmp_path}/{{a,b}}"
    joined = open_dataset(spec).info
    assert (joined.hours, joined.lengths, joined.samples) == (0.25, INFO.lengths * 2, 20)
    other = json.loads((tmp_path / "b" / "dataset.json").read_text()) | {"codec": {"id": "x", "weights_hash": "00"}}
    (tmp_path / "b" / "dataset.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="different codecs"):
        open_dataset(spec)
    (tmp_path / "b" / "dataset.json").unlink()
    assert open_dataset(spec).info.lengths == ()


def test_a_silence_of_another_codec_or_no_valid_latent_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, 1, 2)
    np.save(tmp_path / "silence.npy", np.zeros((750, CHANNELS + 1), np.float16))
    with pytest.raises(ValueError, match=r"silence\.npy.*expected floats"):
        open_dataset(str(tmp_path))
    np.save(tmp_path / "silence.npy", np.full((9, CHANNELS), np.nan, np.float16))
    with pytest.raises(ValueError, match="not finite"):
        open_dataset(str(tmp_path))
    np.save(tmp_path / "silence.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a plain npy"):
        open_dataset(str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    write_tar(empty / "s.tar", [])
    with pytest.raises(ValueError, match="no valid latent"):
        open_dataset(str(empty))
