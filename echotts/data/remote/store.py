"""Shards by their number, wherever they are: opened where they lie, or fetched ahead of use into the cache.

The stream says which shards it will want, in the order of need (`expect`); threads fetch them as far as the cache's
budget goes, and what has been read and is not wanted again soon is deleted, unless all shards fit into the budget. A
shard that cannot be had is reported as Unavailable to whoever opens it; the reader skips it and counts it, so that
the order of everything else stays the same in every process.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from echotts.data.format.shards import ShardReader
from echotts.data.remote.cache import Cache
from echotts.data.remote.fetch import Fetcher
from echotts.data.remote.retry import RetryPolicy, Stopped, one_line
from echotts.data.remote.shard_file import ShardFile
from echotts.data.remote.web import Unavailable

logger = logging.getLogger(__name__)

AHEAD_UNITS = 3  # of each stream and source, where the budget allows it
FETCH_THREADS = 4
SAY_AFTER_S = 10.0  # of waiting for one shard
FORGET_S = 600.0  # after that a shard that could not be had is tried again

Lengths = Sequence[tuple[int, int, int]]  # latent frames, bytes of text, samples that are no longer than that


@dataclass(frozen=True)
class Source:
    """The shards of one data set of a mixture, its weight, and the lengths of its samples where they are known.

    `lengths_whole` is False where `lengths` come from a look at some of the shards.
    """

    files: tuple[ShardFile, ...]
    weight: float = 1.0
    lengths: Lengths = ()
    lengths_whole: bool = True


class Shards:
    """The shards of one or several sources, numbered through all of them: on this machine's disks or elsewhere.

    `cache`, needed where some are elsewhere, is shared by all such objects of a process. `ahead`: units of each stream
    and source that are fetched before they are needed.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        cache: Cache | None = None,
        policy: RetryPolicy | None = None,
        ahead: int = AHEAD_UNITS,
    ) -> None:
        self.sources = tuple(sources)
        self.files = tuple(file for source in sources for file in source.files)
        if not all(source.files for source in sources) or not sources:
            raise ValueError("a stream needs at least one shard")
        self.first = [sum(len(source.files) for source in sources[:number]) for number in range(len(sources))]
        self.unavailable = 0
        self.ahead = ahead if cache else 0
        self.cache = cache
        remote = [file for file in self.files if file.remote]
        if remote and cache is None:
            raise ValueError(f"{remote[0].url}: shards from elsewhere need a cache")
        self._keys = [self._slot.id_of(file) if file.remote else "" for file in self.files]
        sizes = [file.bytes for file in remote]
        budget_bytes = cache.budget_bytes if cache else 0
        self._keep_all = None not in sizes and sum(size or 0 for size in sizes) <= budget_bytes
        self._typical = max((size for size in sizes if size), default=0)
        self._stopping = threading.Event()
        self._fetcher = Fetcher(policy or RetryPolicy(), self._stopping)
        self._wanted: dict[int, list[int]] = {}  # by owner, in the order of need
        self._waited_for: Counter[int] = Counter()
        self._fetching: dict[int, tuple[Path, float]] = {}  # since when
        self._failed: dict[int, tuple[str, float]] = {}
        self._threads: list[threading.Thread] = []
        if cache is not None:
            with cache.lock:
                cache.join()

    @property
    def _slot(self) -> Cache:
        assert self.cache is not None  # __init__ asks for one where a shard is elsewhere
        return self.cache

    @property
    def retries(self) -> int:
        """Requests that had to be made again so far."""
        return self._fetcher.retries.count

    def on_retry(self, listener: Callable[[str], None]) -> None:
        """`listener` gets each such request, in one line, from any thread."""
        self._fetcher.retries.listener = listener

    @property
    def cache_bytes(self) -> int:
        """Bytes that fetched shards take on this machine's disk."""
        if self.cache is None:
            return 0
        with self.cache.lock:
            return self.cache.used

    def open(self, number: int, channels: int | None) -> ShardReader:
        """A reader of the shard. Raises Unavailable where it is elsewhere and cannot be had."""
        if not self.files[number].remote:
            return ShardReader(Path(self.files[number].url), channels)
        self._start()
        key = self._keys[number]
        with self._slot.lock:
            self._waited_for[number] += 1
            self._slot.changed.notify_all()
            try:
                self._await(number)
            finally:
                self._waited_for[number] -= 1
            path = self._slot.acquire(key)
        try:
            return _FetchedReader(self, number, path, channels)
        except BaseException:
            self.done(number)
            raise

    def expect(self, owner: int, numbers: Sequence[int]) -> None:
        """Says which shards `owner` will open, in the order of need; replaces what it said before."""
        if self.cache is None:
            return
        remote = [number for number in numbers if self.files[number].remote]
        with self._slot.lock:
            self._wanted[owner] = remote
            self._slot.changed.notify_all()
        if remote:
            self._start()

    def done(self, number: int) -> None:
        """A reader is closed: a consumed shard is deleted, unless it is wanted again soon or all have room."""
        key = self._keys[number]
        with self._slot.lock:
            self._slot.release(key)
            again = self._keep_all or key in {self._keys[number] for number in self._order()}
            if not again and not self._stopping.is_set() and key in self._slot.idle():
                self._slot.discard(key)
            self._slot.changed.notify_all()

    def close(self) -> None:
        """Ends what goes on in the background; who waits for a shard gets Stopped."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self.cache is None:
            return
        with self._slot.lock:
            self._slot.changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        with self._slot.lock:
            self._slot.leave()

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await(self, number: int) -> None:
        """Returns when the shard is in the cache; raises Unavailable or Stopped. Holds the lock."""
        began = said = time.monotonic()
        pause_s = SAY_AFTER_S
        while not self._slot.has(self._keys[number]):
            if self._stopping.is_set():
                raise Stopped
            now = time.monotonic()
            reason, when = self._failed.get(number, ("", 0.0))
            if reason and (now - when < FORGET_S):
                self.unavailable += 1
                raise Unavailable(reason, gone=True)
            self._failed.pop(number, None)
            if now - said >= pause_s:
                said, pause_s = now, min(2 * pause_s, 300.0)
                self._say_slow(number, now - began)
            self._slot.changed.wait(0.5)

    def _say_slow(self, number: int, waited_s: float) -> None:
        name, size = self.files[number].name, self.files[number].bytes
        of = f" of {size / 1e6:.0f}" if size else ""
        if number in self._fetching:
            partial, since = self._fetching[number]
            have = partial.stat().st_size / 1e6 if partial.exists() else 0.0
            rate = have / max(time.monotonic() - since, 1e-3)
            how = f"{have:.0f}{of} MB are here, {rate:.1f} MB/s"
        else:
            how = "it is not being fetched yet: the cache has no room"
        logger.warning("waiting for shard %s for %.0f s now: %s", name, waited_s, how)

    def _start(self) -> None:
        if self._threads or self._stopping.is_set():
            return
        self._threads = [
            threading.Thread(target=self._work, name=f"shard fetcher {number}", daemon=True)
            for number in range(FETCH_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while True:
            with self._slot.lock:
                while (number := self._next_job()) is None:
                    if self._stopping.is_set():
                        return
                    self._slot.changed.wait()
            self._fetch(number)

    def _next_job(self) -> int | None:
        """The shard to fetch now, room for it reserved: those that are waited for first, then by need."""
        if self._stopping.is_set():
            return None
        waited = [number for number, count in self._waited_for.items() if count > 0]
        order = self._order()
        for number in (*waited, *order):
            key, size = self._keys[number], self.files[number].bytes or self._typical
            if number in self._failed or self._slot.has(key) or self._slot.coming(key):
                continue
            if not self._make_room(size, order, urgent=number in waited):
                if number not in waited:
                    return None
                if self._fetching:
                    continue  # there will be room when one of them is done
                self._say_over(number, size)
            self._fetching[number] = (self._slot.reserve(key, size), time.monotonic())
            return number
        return None

    def _order(self) -> list[int]:
        """What is wanted, by need: the first of every owner, then the second."""
        longest = max(map(len, self._wanted.values()), default=0)
        return [wanted[place] for place in range(longest) for wanted in self._wanted.values() if place < len(wanted)]

    def _make_room(self, size_bytes: int, order: Sequence[int], urgent: bool) -> bool:
        """Deletes until so much more fits: what nobody wants, and if it is urgent what is wanted last."""
        need = {self._keys[number]: place for place, number in reversed(list(enumerate(order)))}
        while not self._slot.fits(size_bytes):
            idle = self._slot.idle()
            unwanted = [key for key in idle if key not in need]
            if unwanted:
                self._slot.discard(unwanted[0])
            elif urgent and idle:
                self._slot.discard(max(idle, key=lambda key: need[key]))
            else:
                return False
        return True

    def _fetch(self, number: int) -> None:
        file, key = self.files[number], self._keys[number]
        partial, _ = self._fetching[number]
        reason = None
        try:
            size = self._fetcher.download(file, partial, lambda size: self._sized(number, size))
            with self._slot.lock:
                self._slot.commit(key, partial, size)
                self._typical = max(self._typical, size)
        except Stopped:
            pass
        except (OSError, ValueError) as error:
            reason = one_line(error)
        with self._slot.lock:
            del self._fetching[number]
            if not self._slot.has(key):
                self._slot.discard(key, keep_partial=reason is None)
            if reason is not None:
                self._failed[number] = (reason, time.monotonic())
            self._slot.changed.notify_all()

    def _sized(self, number: int, size_bytes: int) -> None:
        """The size of a shard that no list knew: makes room for it."""
        key = self._keys[number]
        with self._slot.lock:
            self._slot.resize(key, size_bytes)
            if not self._make_room(0, self._order(), urgent=True):
                self._say_over(number, size_bytes)

    def _say_over(self, number: int, size_bytes: int) -> None:
        logger.warning(
            "%s: with its %.2f GB the cache is over its %.2f GB: raise --data.cache_gb, or lower --data.streams",
            *(self.files[number].url, size_bytes / 1e9, self._slot.budget_bytes / 1e9),
        )


class _FetchedReader(ShardReader):
    """A reader that gives the shard back to the cache when it is closed."""

    def __init__(self, shards: Shards, number: int, path: Path, channels: int | None) -> None:
        self._give_back = lambda: shards.done(number)
        super().__init__(path, channels, shards.files[number].name)

    def close(self) -> None:
        super().close()
        give_back, self._give_back = self._give_back, lambda: None
        give_back()


def check_budget(sources: Sequence[Source], streams: int, budget_bytes: int, interleave: int = 1) -> None:
    """ValueError where the cache cannot hold what `streams` streams of this process read at once."""
    largest = sum(max((file.bytes or 0 for file in source.files if file.remote), default=0) for source in sources)
    names = [file.url for source in sources for file in source.files if file.remote]
    needed = largest * streams * interleave
    if needed > budget_bytes:
        at_once = f"{streams} streams of this process" + (f" and {len(sources)} sources" if len(sources) > 1 else "")
        at_once += f", {interleave} each" if interleave > 1 else ""
        raise ValueError(
            f"{names[0]}: the shard cache of {budget_bytes / 1e9:g} GB (--data.cache_gb) is too small: shards of "
            f"{largest / len(sources) / 1e9:.2g} GB are read at once by the {at_once}, so it needs "
            f"{needed / 1e9:.3g} GB; give more, or fewer --data.streams (or --data.interleave)"
        )
