"""Data arguments, mixtures, and shards over HTTPS and in stores supported by fsspec."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echotts.config import Bucket
from echotts.data.format.info import DatasetInfo, ShardInfo
from echotts.data.format.shards import ShardReader, ShardWriter
from echotts.data.remote.cache import Cache
from echotts.data.remote.dataset import open_dataset
from echotts.data.remote.retry import Retries, RetryPolicy, retry
from echotts.data.remote.shard_file import ShardFile
from echotts.data.remote.sources import Part, scheme_of, split_parts
from echotts.data.remote.store import Shards, Source
from echotts.data.remote.web import Unavailable, asked_wait_s
from echotts.data.stream.length_buckets import choose_buckets
from echotts.data.stream.order import BucketSchedule, Mixture, Order, Promotion
from echotts.data.stream.stream import Stream
from echotts.files import sha256_file
from tests.data.corpus import (
    BUCKETS,
    CHANNELS,
    SILENCE,
    TOKENIZER,
    config,
    local_shards,
    neighbours,
    sample,
    write_shards,
)
from tests.data.fake_hub import Cut, FakeHub, Status
from tests.data.test_stream import assert_equal, steps

FAST = RetryPolicy(deadline_s=4.0, first_wait_s=0.01, longest_wait_s=0.1, silence_s=0.4)
ONE = BUCKETS[-1:]  # one bucket: its schedule needs no lengths


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_shards(tmp_path_factory.mktemp("shards"), shards=4, samples=24)


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("data/*.tar", [Part("data/*.tar")]),
        (
            "0.7 * hf://datasets/a/b/x*.tar + 0.3 * d/{a,b}",
            [Part("hf://datasets/a/b/x*.tar", 0.7), Part("d/{a,b}", 0.3)],
        ),
        ("a + b+c", [Part("a"), Part("b+c")]),
        ("3 * a", [Part("a", 3.0)]),
    ],
)
def test_an_argument_is_one_source_or_a_sum_of_them(argument: str, parts: list[Part]) -> None:
    assert split_parts(argument) == parts


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        (" ", "no data given"),
        ("0.5 * a + b", "b has no weight"),
        ("0 * a + 1 * b", "above 0"),
        ("1e999 * a", "above 0"),
        ("1.2.3 * a", "not a number"),
        ("a +  + b", "one side of a"),
    ],
)
def test_an_ambiguous_mixture_is_rejected(argument: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        split_parts(argument)


def test_schemes_are_seen_in_any_case() -> None:
    assert [scheme_of(spec) for spec in ("HF://x", "gs://b/x", "a/b:c", "C:/x", "/x")] == ["hf", "gs", "", "", ""]


@given(weights=st.lists(st.floats(0.05, 20), min_size=1, max_size=5), stream=st.integers(0, 63))
@settings(max_examples=20, deadline=None)
def test_a_mixture_keeps_its_weights_over_any_span_of_every_stream(weights: list[float], stream: int) -> None:
    mixture = Mixture(weights, seed=3)
    for first in (0, 12345):
        chosen = Counter(mixture.at(stream, turn) for turn in range(first, first + 500))
        for source, weight in enumerate(weights):
            assert chosen[source] / 500 == pytest.approx(weight / sum(weights), abs=0.015)


def test_streams_of_a_mixture_draw_by_weight_at_any_number_of_processes_and_resume(tmp_path: Path) -> None:
    folders = []
    for name, shards, samples in (("rich", 6, 40), ("poor", 2, 10)):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(shards):
            with ShardWriter(folder / f"{name}-{number}.tar", CHANNELS) as writer:
                for place in range(samples):
                    writer.write(sample(f"{name}{number}_{place}", frames=4 + place % 9))
        folders.append(folder)
    dataset = open_dataset(f"1 * {folders[0]} + 3 * {folders[1]}", policy=FAST)
    with Stream(Shards(dataset.sources), config(), 1, TOKENIZER, SILENCE) as stream:
        first = steps(stream, 40)
        state = stream.state()
        rest = steps(stream, 10)
    counts = Counter(name[:4] for _, names, _ in first for name in names)
    assert counts["poor"] / counts.total() == pytest.approx(0.75, abs=0.03)
    rows = [neighbours(config().batch_size, half, 2) for half in range(2)]
    halves = [Stream(Shards(dataset.sources), config(), 1, TOKENIZER, SILENCE, own) for own in rows]
    for half in halves:
        half.restore(state)
    for (_, names, _), *taken in zip(rest, *(steps(half, 10) for half in halves), strict=True):
        assert names == [name for _, own, _ in taken for name in own]
    for half in halves:
        half.close()
    with (
        Stream(local_shards(dataset.files), config(), 1, TOKENIZER, SILENCE) as other,
        pytest.raises(ValueError, match="mixture"),
    ):
        other.restore(state)


def test_a_sum_without_weights_is_one_list(files: list[Path]) -> None:
    dataset = open_dataset(f"{files[0]} + {files[2]}", policy=FAST)
    assert [[file.url for file in source.files] for source in dataset.sources] == [[str(files[0]), str(files[2])]]


def test_a_share_of_the_samples_goes_into_longer_buckets_and_the_schedule_includes_it() -> None:
    promotion = Promotion(0.25, 3, seed=1)
    found = Counter((own, promotion.bucket(own, 7, place)) for own in (0, 1, 2) for place in range(2000))
    assert found[0, 0] / 2000 == pytest.approx(0.75, abs=0.03)
    assert found[0, 1] / 2000 == pytest.approx(0.125, abs=0.03)
    assert found[0, 2] / 2000 == pytest.approx(0.125, abs=0.03)
    assert found[1, 2] / 2000 == pytest.approx(0.25, abs=0.03)
    assert found[2, 2] == 2000
    assert promotion.counts([80, 40, 20]) == pytest.approx([60, 40, 40])
    assert Promotion(0.0, 3, seed=1).counts([80, 40, 20]) == [80, 40, 20]


def test_the_stream_puts_that_share_into_longer_buckets(files: list[Path]) -> None:
    def longer(share: float) -> float:
        with Stream(local_shards(files), config(longer_share=share), 1, TOKENIZER, SILENCE) as stream:
            taken = steps(stream, 60)
        rows = [
            (bucket, next(b for b in BUCKETS if frames <= b.frames))
            for batch, _, bucket in taken
            for frames in batch.latent_mask.sum(axis=1)
        ]
        return sum(bucket != own for bucket, own in rows) / len(rows)

    assert longer(0.4) - longer(0.0) > 0.2


@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=8), count=st.integers(1, 4)
)
@settings(max_examples=30, deadline=None)
def test_chosen_buckets_pad_least_of_all_choices(lengths: list[tuple[int, int]], count: int) -> None:
    def padded(edges: tuple[int, ...]) -> int:
        return sum(samples * min(edge for edge in edges if edge >= frames) for frames, samples in lengths)

    chosen = choose_buckets(lengths, count)
    assert len(chosen) <= count
    longest = max(frames for frames, _ in lengths)
    others = _choices(sorted({frames for frames, _ in lengths} - {longest}), count - 1)
    assert padded(tuple(chosen)) == min(padded((*edges, longest)) for edges in others)


def _choices(edges: list[int], most: int) -> Iterator[tuple[int, ...]]:
    yield ()
    for place, edge in enumerate(edges if most else ()):
        yield from ((edge, *rest) for rest in _choices(edges[place + 1 :], most - 1))


def test_estimated_lengths_get_more_headroom() -> None:
    assert BucketSchedule([50, 50], 0).thresholds == [pytest.approx(0.49)]
    assert BucketSchedule([50, 50], 0, headroom=1.1).thresholds == [pytest.approx(0.45)]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "17"}, 17),
        ({"Retry-After": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40),
        ({"Retry-After": "soon"}, 0),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=7;t=55'}, 0),
    ],
)
def test_retry_headers_of_servers_are_parsed(headers: dict[str, str], seconds: float) -> None:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    assert asked_wait_s(message, now=60.0) == seconds


def test_retries_end_at_the_deadline_and_immediately_if_the_server_requests_longer() -> None:
    calls = []

    def fails(wait_s: float = 0.0, gone: bool = False) -> None:
        calls.append(wait_s)
        raise Unavailable("it is away", gone=gone, wait_s=wait_s)

    retries = Retries(RetryPolicy(deadline_s=0.5, first_wait_s=0.01, longest_wait_s=0.05))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="x: given up: it is away"):
        retry(fails, "x", retries)
    assert 0.3 < time.monotonic() - began < 0.8
    assert retries.count == len(calls) - 1 > 5
    for call, words in ((lambda: fails(60.0), "asked to wait 60 s"), (lambda: fails(gone=True), "it is away")):
        calls.clear()
        with pytest.raises(Unavailable, match=words):
            retry(call, "x", retries)
        assert len(calls) == 1


def test_a_pause_requested_by_a_server_applies_to_all_threads() -> None:
    retries = Retries(FAST)
    retries.hold(0.4)
    passed = []
    threads = [threading.Thread(target=lambda: (retries.wait(0.0), passed.append(time.monotonic()))) for _ in range(3)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(passed) - began >= 0.38


@pytest.mark.network_fake
def test_shards_on_the_web_are_a_range_of_addresses(files: list[Path], tmp_path: Path) -> None:
    payloads = {path.name: path.read_bytes() for path in files}
    with FakeHub() as web:
        web.commit(payloads)
        web.trouble(files[2].name, Status(503), Cut(900))  # among the heads that are read
        dataset = open_dataset(f"{web.url}/plain/s-{{000..003}}.tar", policy=FAST)
        web.trouble(files[1].name, Status(503), Cut(20_000))  # the tar would still begin like one there
        assert [file.bytes for file in dataset.sources[0].files] == [None] * 4
        with Stream(
            Shards(dataset.sources, Cache(tmp_path, 10**8), FAST), config(buckets=ONE), 1, TOKENIZER, SILENCE
        ) as stream:
            found = steps(stream, 10)
        with Stream(local_shards(files), config(buckets=ONE), 1, TOKENIZER, SILENCE) as stream:
            assert_equal(steps(stream, 10), found)
        for spec, words in (
            ("x-{0..3}.tar", "404"),
            ("s-*.tar", "globs do not work over HTTP"),
            ("page.html", "page.html is no"),
        ):
            with pytest.raises((ValueError, OSError), match=words):
                open_dataset(f"{web.url}/plain/{spec}", policy=FAST)


@pytest.mark.network_fake
def test_dataset_json_on_the_web_gives_sizes_hashes_and_lengths(files: list[Path], tmp_path: Path) -> None:
    shards = tuple(
        ShardInfo(name=path.name, samples=24, bytes=path.stat().st_size, sha256=sha256_file(path)) for path in files
    )
    info = DatasetInfo(channels=CHANNELS, codec_id="demo", lengths=((8, 16, 7), (24, 32, 3)), shards=shards)
    info.save(tmp_path / "dataset.json")
    with FakeHub() as web:
        web.commit({path.name: path.read_bytes() for path in [*files, tmp_path / "dataset.json"]})
        dataset = open_dataset(f"{web.url}/plain/s-{{000..001}}.tar", policy=FAST)
        assert [request.path for request in web.requests] == ["/plain/dataset.json", "/plain/silence.npy"]
    assert dataset.sources[0].files[1] == ShardFile(
        url=f"{web.url}/plain/s-001.tar", bytes=shards[1].bytes, checksum=f"sha256:{shards[1].sha256}"
    )
    assert (dataset.info.codec_id, dataset.sources[0].lengths, dataset.sources[0].lengths_whole) == (
        ("demo", info.lengths, True)
    )


def test_stores_supported_by_fsspec_are_read_by_range_and_glob(files: list[Path], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in files:
        memory.pipe(f"/bucket/set/{path.name}", path.read_bytes())
    specs = ["memory://bucket/set", "memory://bucket/set/s-{000..003}.tar", "memory://bucket/s*t/s-*.tar"]
    opened = [open_dataset(spec, policy=FAST) for spec in specs]
    assert opened[0].sources[0].files == opened[1].sources[0].files == opened[2].sources[0].files
    assert [file.bytes for file in opened[0].sources[0].files] == [path.stat().st_size for path in files]
    with Stream(
        Shards(opened[0].sources, Cache(tmp_path, 10**8), FAST), config(buckets=ONE), 1, TOKENIZER, SILENCE
    ) as stream:
        found = steps(stream, 10)
    with Stream(local_shards(files), config(buckets=ONE), 1, TOKENIZER, SILENCE) as stream:
        assert_equal(steps(stream, 10), found)
    with pytest.raises(FileNotFoundError, match=r"2 of 6 paths do not exist, the first is memory://bucket/set/s-004"):
        open_dataset("memory://bucket/set/s-{000..005}.tar", policy=FAST)
    with pytest.raises(ValueError, match=r"nowhere:// is not supported"):
        open_dataset("nowhere://x/y.tar", policy=FAST)


def test_a_consumed_shard_is_deleted_unless_all_shards_fit(files: list[Path], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in files:
        memory.pipe(f"/consumed/{path.name}", path.read_bytes())
    dataset = open_dataset("memory://consumed", policy=FAST)
    everything = sum(path.stat().st_size for path in files)
    for budget, left in ((everything, 1), (everything - 1, 0)):
        with Shards(dataset.sources, Cache(tmp_path / str(budget), budget), FAST) as shards:
            shards.open(0, None).close()
            assert len(list(shards.cache.folder.glob("*.tar"))) == left


def test_a_skipped_shard_does_not_affect_the_rest_of_its_stream(files: list[Path]) -> None:
    opened = []

    class Lacking(Shards):
        def open(self, number: int, channels: int | None) -> ShardReader:
            opened.append(number)
            if number == 2:
                raise Unavailable("not here", gone=True)
            return super().open(number, channels)

    settings = config(batch_size=1, streams=1, buckets=ONE, max_rejected_share=1.0, interleave=1)
    with Stream(Lacking(local_shards(files).sources), settings, 1, TOKENIZER, SILENCE) as stream:
        steps(stream, 150)
    order = Order(len(files), 1, 1)
    assert opened == [order.unit(0, ordinal)[0] for ordinal in range(len(opened))]
    assert opened.count(2) >= 2


def test_a_shard_of_another_size_than_was_listed_is_not_used(files: list[Path], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in files:
        memory.pipe(f"/changed/{path.name}", path.read_bytes())
    dataset = open_dataset("memory://changed", policy=FAST)
    memory.pipe("/changed/s-002.tar", files[0].read_bytes() + files[1].read_bytes())
    policy = RetryPolicy(deadline_s=0.2, first_wait_s=0.01)
    with Stream(
        Shards(dataset.sources, Cache(tmp_path, 10**8), policy), config(buckets=ONE), 1, TOKENIZER, SILENCE
    ) as stream:
        names = {name.split("/")[0] for _, names, _ in steps(stream, 20) for name in names}
        assert stream.rejections.counts["shard_unavailable"] >= 1
    assert names == {"s-000.tar", "s-001.tar", "s-003.tar"}


def test_remote_and_local_shards_mix(files: list[Path], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/mixed/r-0.tar", files[0].read_bytes())
    sources = [Source((ShardFile(url="memory://mixed/r-0.tar"),)), Source(tuple(ShardFile(url=str(f)) for f in files))]
    with Stream(Shards(sources, Cache(tmp_path, 10**8), FAST), config(), 1, TOKENIZER, SILENCE) as stream:
        names = Counter(name.split("/")[0] == "r-0.tar" for _, names, _ in steps(stream, 20) for name in names)
    assert names[True] / names.total() == pytest.approx(0.5, abs=0.06)


def test_two_processes_on_a_host_use_two_slots_and_an_invalid_folder_is_an_error(tmp_path: Path) -> None:
    caches = [Cache(tmp_path, 10**6) for _ in range(2)]
    assert [cache.folder.name for cache in caches] == ["slot-0", "slot-1"]
    for cache in caches:
        cache.join()
        cache.leave()
    assert Cache(tmp_path, 10**6).folder.name == "slot-0"
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/slot-0: cannot create the shard cache .*--data\.cache_dir"):
        Cache(tmp_path / "file", 10**6)


def test_fewer_shards_than_streams_gives_a_warning_with_several_processes(
    files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(batch_size=8, streams=8, buckets=(Bucket(frames=24, tokens=64),))
    with Stream(local_shards(files), settings, 1, TOKENIZER, SILENCE):
        assert "4 shards for 8 streams" not in caplog.text
    with Stream(local_shards(files), settings, 1, TOKENIZER, SILENCE, range(4)):
        assert "4 shards for 8 streams: each is split into 2 parts" in caplog.text
