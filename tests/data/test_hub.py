"""Shards from a fake Hub with failures, through the real huggingface_hub.

The stream's output is compared with that of the same shards on disk: failures affect only the time.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from echotts.data.format.shards import ShardReader
from echotts.data.remote.cache import Cache
from echotts.data.remote.dataset import Dataset, from_pin, open_dataset
from echotts.data.remote.retry import RetryPolicy
from echotts.data.remote.store import Shards, Source, check_budget
from echotts.data.remote.web import Unavailable, ascii_url
from echotts.data.stream.stream import Stream, merge_states
from tests.data.corpus import SILENCE, TOKENIZER, config, local_shards, neighbours, write_shards
from tests.data.fake_hub import REPOSITORY, Cut, FakeHub, Html, Stall, Status, Trouble
from tests.data.test_stream import Step, assert_equal, steps, together

pytestmark = pytest.mark.network_fake

FAST = RetryPolicy(deadline_s=4.0, first_wait_s=0.01, longest_wait_s=0.1, silence_s=0.4)
SHORT = RetryPolicy(deadline_s=0.3, first_wait_s=0.01, longest_wait_s=0.1, silence_s=0.4)
SPEC = f"hf://datasets/{REPOSITORY}@main/train/s-{{000..007}}.tar"
BAD = "train/s-003.tar"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_shards(tmp_path_factory.mktemp("shards"), shards=8, samples=24)


@pytest.fixture(scope="module")
def repository(files: list[Path]) -> dict[str, bytes]:
    folder = files[0].parent
    np.save(folder / "silence.npy", SILENCE.astype(np.float16))
    return {f"train/{path.name}": path.read_bytes() for path in [*files, folder / "silence.npy"]}


@pytest.fixture
def hub(repository: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as server:
        server.commit(repository)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def local(files: list[Path], count: int, **changes: int) -> list[Step]:
    """The batches of the same shards on disk; lengths as a look at the heads finds them, so buckets are the same."""
    with Stream(local_shards(files), config(**changes), 1, TOKENIZER, SILENCE) as stream:
        return steps(stream, count)


def fetched(
    dataset: Dataset,
    folder: Path,
    process: int = 0,
    processes: int = 1,
    policy: RetryPolicy = FAST,
    gb: float = 1.0,
    **changes: int,
) -> Stream:
    shards = Shards(dataset.sources, Cache(folder, round(gb * 1e9)), policy)
    rows = neighbours(config().batch_size, process, processes)
    return Stream(shards, config(buckets=ONE, **changes), 1, TOKENIZER, dataset.silence, rows)


ONE = config().buckets[-1:]  # one bucket: its schedule needs no lengths


@pytest.mark.parametrize(
    "troubles",
    [
        [],
        [Status(429, {"Retry-After": "1"})],
        [Status(429, {"RateLimit": '"resolvers";r=0;t=1'}), Status(503)],
        [Status(500), Status(502), Status(503)],
        [Cut(700), Cut(0), Cut(3000)],
        [Stall(2000, 1.0)],
        [Html()],
    ],
    ids=lambda troubles: " ".join(type(trouble).__name__ for trouble in troubles) or "none",
)
def test_troubles_that_pass_change_no_batch(
    hub: FakeHub, files: list[Path], tmp_path: Path, troubles: list[Trouble]
) -> None:
    hub.trouble(BAD, *troubles)
    with fetched(open_dataset(SPEC, policy=FAST), tmp_path) as stream:
        found = steps(stream, 30)
        assert stream.rejections.counts.total() == 0
        assert stream.shards.retries == len(troubles)
    assert_equal(local(files, 30, buckets=ONE), found)
    assert len(hub.gets(BAD)) <= 1 + len(troubles) + 1  # the heads of some shards are read
    heads = 4
    assert len(hub.gets(".tar")) == len(files) + heads + len(troubles)  # all fit the budget: once each, three epochs
    cuts = [trouble.bytes for trouble in troubles if isinstance(trouble, Cut | Stall) and trouble.bytes]
    ranges = [request.range for request in hub.gets(BAD) if request.range.endswith("-")]
    assert bool(ranges) == bool(cuts)
    if cuts:
        assert ranges[0] == f"bytes={cuts[0]}-"


@pytest.mark.parametrize("forever", [Status(404), Html(), Status(500)], ids=["missing", "html", "500"])
def test_an_unavailable_shard_is_skipped_and_the_order_of_the_rest_is_kept(
    hub: FakeHub, files: list[Path], tmp_path: Path, forever: Trouble, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset(SPEC, policy=FAST)
    hub.trouble(BAD, forever=forever)
    runs = []
    for processes in (1, 2):
        streams = [fetched(dataset, tmp_path, number, processes, SHORT) for number in range(processes)]
        runs.append(together([steps(stream, 24) for stream in streams]))
        counted = sum(stream.rejections.counts["shard_unavailable"] for stream in streams)
        for stream in streams:
            stream.close()
    assert counted >= 1
    assert_equal(runs[0], runs[1])
    with Stream(_Lacking(files, 3), config(buckets=ONE), 1, TOKENIZER, SILENCE) as stream:
        assert_equal(steps(stream, 24), runs[0])
    names = {name.split("/")[0] for _, names, _ in runs[0] for name in names}
    assert names == {path.name for path in files} - {"s-003.tar"}
    assert "s-003.tar: skipped the whole shard, shard_unavailable" in caplog.text


class _Lacking(Shards):
    """Local shards, one of which is unavailable."""

    def __init__(self, files: list[Path], number: int) -> None:
        super().__init__(local_shards(files).sources)
        self._lacking = number

    def open(self, number: int, channels: int | None) -> ShardReader:
        if number == self._lacking:
            raise Unavailable("not here", gone=True)
        return super().open(number, channels)


def test_when_too_many_shards_are_gone_the_run_stops_with_a_line(hub: FakeHub, tmp_path: Path) -> None:
    dataset = open_dataset(SPEC, policy=FAST)
    for number in range(8):
        hub.trouble(f"train/s-{number:03d}.tar", forever=Status(404))
    with fetched(dataset, tmp_path, policy=SHORT) as stream, pytest.raises(ValueError, match="could not be downloaded"):
        stream.next()


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_processes(
    hub: FakeHub, files: list[Path], tmp_path: Path, processes: int
) -> None:
    dataset = open_dataset(SPEC, policy=FAST)
    layout = config(batch_size=16, streams=8, buckets=ONE)
    with Stream(local_shards(files), layout, 1, TOKENIZER, SILENCE) as stream:
        expected = steps(stream, 12)
    streams = []
    for process in range(processes):
        shards = Shards(from_pin(json.loads(json.dumps(dataset.pin))).sources, Cache(tmp_path, 10**8), FAST)
        streams.append(Stream(shards, layout, 1, TOKENIZER, SILENCE, neighbours(16, process, processes)))
    done = [steps(stream, 6) for stream in streams]
    state = json.loads(json.dumps(merge_states(stream.state() for stream in streams)))
    for stream in streams:
        stream.close()
    assert_equal(expected[:6], together(done))
    shards = Shards(dataset.sources, Cache(tmp_path, 10**8), FAST)
    with Stream(shards, layout, 1, TOKENIZER, SILENCE) as alone:  # and continues alone, exactly
        alone.restore(state)
        assert_equal(expected[6:], steps(alone, 6))


def test_the_cache_keeps_its_limit_deletes_consumed_shards_and_leases_those_in_use(
    hub: FakeHub, repository: dict[str, bytes], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(map(len, repository.values()))
    peak = []
    reserve = Cache.reserve

    def watched(self: Cache, key: str, size_bytes: int) -> Path:
        partial = reserve(self, key, size_bytes)
        on_disk = sum(path.stat().st_size for path in self.folder.glob("*.tar*"))
        peak.append(max(self.used, on_disk))
        return partial

    monkeypatch.setattr(Cache, "reserve", watched)
    with fetched(open_dataset(SPEC, policy=FAST), tmp_path, gb=5.5 * largest / 1e9, interleave=1) as stream:
        found = steps(stream, 60)
        slot = tmp_path / "slot-0"
        for _ in range(50):  # until nothing is being fetched
            here = {path.name for path in slot.glob("*.tar")}
            leased = {json.loads(path.read_text())["name"] for path in (slot / ".leases").glob("*.json")}
            if here == leased:
                break
            time.sleep(0.05)
        assert here == leased
        assert 0 < sum((slot / name).stat().st_size for name in here) <= 5.5 * largest
        assert len(here) < len(files)
        assert 0 < stream.shards.cache_bytes <= 5.5 * largest
    assert_equal(local(files, 60, buckets=ONE, interleave=1), found)
    assert max(peak) <= 5.5 * largest
    assert not list(slot.glob(".leases/*"))
    epochs = 60 * 8 / (8 * 24)
    assert len(hub.gets(".tar")) - 4 <= 8 * (epochs + 2)  # once an epoch each, and what was fetched ahead at the end


def test_a_download_left_by_a_killed_process_resumes_by_range(
    hub: FakeHub, repository: dict[str, bytes], files: list[Path], tmp_path: Path
) -> None:
    dataset = open_dataset(SPEC, policy=FAST)
    payload = repository[BAD]
    cache = Cache(tmp_path, 10**8)
    keys = [cache.id_of(file) for file in dataset.sources[0].files]
    os.close(cache._owner)  # as if it had died
    (cache.folder / f"{keys[3]}.tar.999999999.partial").write_bytes(payload[:1500])
    (cache.folder / f"{keys[4]}.tar.999999999.partial").write_bytes(b"x" * 1500)  # with other content
    (cache.folder / f"{keys[5]}.tar").write_bytes(repository["train/s-005.tar"])
    with fetched(dataset, tmp_path) as stream:
        assert_equal(local(files, 30, buckets=ONE), steps(stream, 30))
    assert [request.range for request in hub.gets(BAD)][-1] == "bytes=1500-"
    assert [request.range for request in hub.gets("train/s-004.tar")][-2:] == ["bytes=1500-", ""]
    assert not [request for request in hub.gets("train/s-005.tar") if not request.range]


def test_listing_is_pinned_shared_and_needs_no_further_request(
    hub: FakeHub, repository: dict[str, bytes], files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.trouble(f"/api/datasets/{REPOSITORY}/revision/main", Status(500))
    first = hub.main
    dataset = open_dataset(SPEC, policy=FAST)
    np.testing.assert_array_equal(dataset.silence, SILENCE)
    assert {file.url for file in dataset.sources[0].files} == {
        f"hf://datasets/{REPOSITORY}@{first}/train/s-{number:03d}.tar" for number in range(8)
    }
    asked = len(hub.requests)
    assert asked <= 3 + 1 + 4  # commit (twice: 500), one folder, silence.npy, four heads
    pin = json.loads(json.dumps(dataset.pin))
    others = from_pin(pin)
    assert (others.sources, others.info) == (dataset.sources, dataset.info)
    assert len(hub.requests) == asked
    hub.commit({name: payload for name, payload in repository.items() if name != BAD})
    with caplog.at_level(logging.WARNING, "echotts.data"):
        again = open_dataset(SPEC, pin, FAST)
    assert f"is now at commit {hub.main[:12]}: the run stays at {first[:12]}" in caplog.text
    assert again.sources == dataset.sources
    with fetched(again, tmp_path) as stream:
        assert_equal(local(files, 10, buckets=ONE), steps(stream, 10))
    del hub.commits[first]
    with pytest.raises(FileNotFoundError, match=rf"has no revision {first}"):
        open_dataset(SPEC, pin, FAST)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf://datasets/org/speech@v9/train/s-{000..007}.tar", "org/speech has no revision v9"),
        ("hf://datasets/org/none/s-0.tar", r"no dataset org/none at .*private and there is no token.*HF_TOKEN"),
        ("hf://datasets/org/speech/train/s-{000..009}.tar", r"2 of 10 paths are not .*first is train/s-008\.tar"),
        ("hf://datasets/org/speech/train/x*.tar", r"1 of 1 paths .*train/x\*\.tar"),
        ("hf://datasets/org/speech", r"1 of 1 paths .*the first is \*\.tar"),
        ("hf://models/org/speech/s.tar", "are named hf://datasets/ORG/NAME"),
    ],
)
def test_missing_hub_data_is_a_one_line_error(hub: FakeHub, spec: str, words: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=words) as caught:
        open_dataset(spec, policy=FAST)
    assert "\n" not in str(caught.value)


def test_folders_and_globs_on_the_hub_name_the_same_shards(hub: FakeHub, repository: dict[str, bytes]) -> None:
    hub.commit({**repository, "train/deep/s-009.tar": b"", "README.md": b"x"})
    urls = [
        [file.url for file in open_dataset(f"hf://datasets/{REPOSITORY}{rest}", policy=FAST).sources[0].files]
        for rest in ("/train", "/train/s-*.tar", "@main/train/s-{000..007}.tar", "/tr*/s-00[0-7].tar")
    ]
    assert urls[0] == urls[1] == urls[2] == urls[3]
    assert len(urls[0]) == 8


def test_a_private_set_needs_the_token_which_goes_to_the_hub_alone(
    hub: FakeHub, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    with pytest.raises(FileNotFoundError, match="private and there is no token: run `hf auth login` or set HF_TOKEN"):
        open_dataset(SPEC, policy=FAST)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(FileNotFoundError, match="or your token may not read it"):
        open_dataset(SPEC, policy=FAST)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.elsewhere = True  # the Hub sends large files from another host
    hub.requests.clear()
    with fetched(open_dataset(SPEC, policy=FAST), tmp_path) as stream:
        assert_equal(local(files, 6, buckets=ONE), steps(stream, 6))
    asked = [(request.authorised, "/plain/" in request.path) for request in hub.requests]
    assert set(asked) == {(True, False), (False, True)}


def test_waiting_for_a_slow_shard_is_logged_and_closing_does_not_wait_for_it(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echotts.data.remote.store.LOG_AFTER_S", 0.5)
    dataset = open_dataset(SPEC, policy=FAST)
    for number in range(8):
        hub.trouble(f"train/s-{number:03d}.tar", forever=Stall(2000, 30.0))
    stream = fetched(dataset, tmp_path, policy=RetryPolicy(deadline_s=60.0, silence_s=1.5))
    threading.Thread(target=lambda: _swallow(stream.next), daemon=True).start()
    deadline = time.monotonic() + 8
    while "waiting for shard s-" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "s: downloaded " in caplog.text
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 4


def _swallow(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception:
        return


def test_a_cache_limit_below_the_concurrently_read_shards_is_rejected(hub: FakeHub) -> None:
    dataset = open_dataset(SPEC, policy=FAST)
    with pytest.raises(
        ValueError, match=r"too small: shards of .* read at once by the 8 streams .*lower --data.streams"
    ):
        check_budget(dataset.sources, 8, 50_000)
    check_budget(dataset.sources, 8, 10**8)
    check_budget([Source(dataset.sources[0].files[:1]), Source(())], 1, 10**8)


def test_everything_goes_through_hf_endpoint_in_a_program_of_its_own(
    hub: FakeHub, files: list[Path], tmp_path: Path
) -> None:
    program = (
        "import sys, hashlib\n"
        "from pathlib import Path\n"
        "from echotts.data.remote.cache import Cache\n"
        "from echotts.data.remote.dataset import open_dataset\n"
        "from echotts.data.remote.store import Shards\n"
        f"dataset = open_dataset({SPEC!r})\n"
        f"shards = Shards(dataset.sources, Cache(Path({str(tmp_path)!r}), 10**8))\n"
        "with shards, shards.open(2, None) as reader:\n"
        "    print(hashlib.sha256(Path(reader.tar.path).read_bytes()).hexdigest(), 'jax' in sys.modules)\n"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [hashlib.sha256(files[2].read_bytes()).hexdigest(), "False"]


def test_addresses_with_blanks_and_letters_beyond_ascii_are_encoded_once():
    assert ascii_url("https://host/a b/ü-{}.tar?x=é y") == "https://host/a%20b/%C3%BC-%7B%7D.tar?x=%C3%A9%20y"
    assert ascii_url("https://host/a%20b.tar") == "https://host/a%20b.tar"
    assert ascii_url("http://bücher.example:8080/x") == "http://xn--bcher-kva.example:8080/x"


@pytest.mark.parametrize(
    "url", ["https://host/a\nb.tar", "https:///x.tar", "https://ho\x00st/x", "https://" + "ü" * 300]
)
def test_an_invalid_url_is_rejected_immediately(url):
    with pytest.raises(Unavailable, match="is not a valid URL") as caught:
        ascii_url(url)
    assert caught.value.gone and "\n" not in str(caught.value)
