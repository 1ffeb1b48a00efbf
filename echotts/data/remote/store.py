"""Access to shards by number: local ones are opened in place, remote ones are prefetched into the cache.

The stream announces which shards it will need, in order (`expect`); threads download them as far as the cache's budget
allows. A consumed shard that is not needed again soon is deleted, unless all shards fit into the budget. Opening an
unavailable shard raises Unavailable; the reader skips and counts it, so that the order of everything else stays the
same in every process.
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
from echotts.data.remote.retry import RetryPolicy, Stopped
from echotts.data.remote.shard_file import ShardFile
from echotts.data.remote.web import Unavailable
from echotts.files import Closing
from echotts.gcs import first_line

logger = logging.getLogger(__name__)

AHEAD_UNITS = 3  # units prefetched per stream and source, if the budget allows
FETCH_THREADS = 4
LOG_AFTER_S = 10.0  # first log line while waiting for one shard
FORGET_S = 600.0  # an unavailable shard is tried again after this time

Lengths = Sequence[tuple[int, int, int]]  # (latent frames, bytes of text, number of samples up to that size)


@dataclass(frozen=True)
class Source:
    """The shards of one dataset in a mixture, its weight, and the lengths of its samples if known.

    `lengths_whole` is False if `lengths` come from only some of the shards.
    """

    files: tuple[ShardFile, ...]
    weight: float = 1.0
    lengths: Lengths = ()
    lengths_whole: bool = True


class Shards(Closing):
    """The shards of one or several sources, numbered consecutively; local or remote.

    `cache`, needed if some are remote, is shared by all such objects of a process. `ahead` is the number of units per
    stream and source to prefetch.
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
            raise ValueError(f"{remote[0].url}: remote shards need a cache")
        self._keys = [self._slot.id_of(file) if file.remote else "" for file in self.files]
        sizes = [file.bytes for file in remote]
        budget_bytes = cache.budget_bytes if cache else 0
        self._keep_all = None not in sizes and sum(size or 0 for size in sizes) <= budget_bytes
        self._typical = max((size for size in sizes if size), default=0)
        self._stopping = threading.Event()
        self._fetcher = Fetcher(policy or RetryPolicy(), self._stopping)
        self._wanted: dict[int, list[int]] = {}  # by owner, in the order in which they are needed
        self._waited_for: Counter[int] = Counter()
        self._fetching: dict[int, tuple[Path, float]] = {}  # partial file, start time
        self._failed: dict[int, tuple[str, float]] = {}
        self._threads: list[threading.Thread] = []
        if cache is not None:
            with cache.lock:
                cache.join()

    @property
    def _slot(self) -> Cache:
        assert self.cache is not None  # __init__ requires one if a shard is remote
        return self.cache

    @property
    def retries(self) -> int:
        """Number of retried requests so far."""
        return self._fetcher.retries.count

    def on_retry(self, listener: Callable[[str], None]) -> None:
        """Calls `listener` with one line for each retry, from any thread."""
        self._fetcher.retries.listener = listener

    @property
    def cache_bytes(self) -> int:
        """Bytes of downloaded shards on this machine's disk."""
        if self.cache is None:
            return 0
        with self.cache.lock:
            return self.cache.used

    def open(self, number: int, channels: int | None) -> ShardReader:
        """A reader of the shard. Raises Unavailable if it is remote and cannot be downloaded."""
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
        """Announces which shards `owner` will open, in order; replaces its previous announcement."""
        if self.cache is None:
            return
        remote = [number for number in numbers if self.files[number].remote]
        with self._slot.lock:
            self._wanted[owner] = remote
            self._slot.changed.notify_all()
        if remote:
            self._start()

    def done(self, number: int) -> None:
        """Called when a reader is closed: deletes the shard unless it is needed again soon or all shards fit."""
        key = self._keys[number]
        with self._slot.lock:
            self._slot.release(key)
            again = self._keep_all or key in {self._keys[number] for number in self._order()}
            if not again and not self._stopping.is_set() and key in self._slot.idle():
                self._slot.discard(key)
            self._slot.changed.notify_all()

    def close(self) -> None:
        """Ends background downloads; anyone waiting for a shard gets Stopped."""
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

    def _await(self, number: int) -> None:
        """Returns when the shard is in the cache; raises Unavailable or Stopped. The caller holds the lock."""
        began = logged = time.monotonic()
        pause_s = LOG_AFTER_S
        while not self._slot.has(self._keys[number]):
            if self._stopping.is_set():
                raise Stopped
            now = time.monotonic()
            reason, when = self._failed.get(number, ("", 0.0))
            if reason and (now - when < FORGET_S):
                self.unavailable += 1
                raise Unavailable(reason, gone=True)
            self._failed.pop(number, None)
            if now - logged >= pause_s:
                logged, pause_s = now, min(2 * pause_s, 300.0)
                self._log_slow(number, now - began)
            self._slot.changed.wait(0.5)

    def _log_slow(self, number: int, waited_s: float) -> None:
        name, size = self.files[number].name, self.files[number].bytes
        of = f" of {size / 1e6:.0f}" if size else ""
        if number in self._fetching:
            partial, since = self._fetching[number]
            have = partial.stat().st_size / 1e6 if partial.exists() else 0.0
            rate = have / max(time.monotonic() - since, 1e-3)
            how = f"downloaded {have:.0f}{of} MB, {rate:.1f} MB/s"
        else:
            how = "not being downloaded yet, because the cache is full"
        logger.warning("waiting for shard %s for %.0f s: %s", name, waited_s, how)

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
        """Chooses the shard to download now and reserves space: first those being waited for, then in order of need."""
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
                    continue  # space will be free when one of them is done
                self._log_over_budget(number, size)
            self._fetching[number] = (self._slot.reserve(key, size), time.monotonic())
            return number
        return None

    def _order(self) -> list[int]:
        """Announced shards in order of need: the first of every owner, then the second, and so on."""
        longest = max(map(len, self._wanted.values()), default=0)
        return [wanted[place] for place in range(longest) for wanted in self._wanted.values() if place < len(wanted)]

    def _make_room(self, size_bytes: int, order: Sequence[int], urgent: bool) -> bool:
        """Deletes idle shards until `size_bytes` more fit: unneeded ones, and if urgent those needed last."""
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
            reason = first_line(error)
        with self._slot.lock:
            del self._fetching[number]
            if not self._slot.has(key):
                self._slot.discard(key, keep_partial=reason is None)
            if reason is not None:
                self._failed[number] = (reason, time.monotonic())
            self._slot.changed.notify_all()

    def _sized(self, number: int, size_bytes: int) -> None:
        """Called when the size of a shard becomes known during download: frees space for it."""
        key = self._keys[number]
        with self._slot.lock:
            self._slot.resize(key, size_bytes)
            if not self._make_room(0, self._order(), urgent=True):
                self._log_over_budget(number, size_bytes)

    def _log_over_budget(self, number: int, size_bytes: int) -> None:
        logger.warning(
            "%s: its %.2f GB exceed the cache's budget of %.2f GB: raise --data.cache_gb, or lower --data.streams",
            *(self.files[number].url, size_bytes / 1e9, self._slot.budget_bytes / 1e9),
        )


class _FetchedReader(ShardReader):
    """A reader that releases the shard to the cache when it is closed."""

    def __init__(self, shards: Shards, number: int, path: Path, channels: int | None) -> None:
        self._give_back = lambda: shards.done(number)
        super().__init__(path, channels, shards.files[number].name)

    def close(self) -> None:
        super().close()
        give_back, self._give_back = self._give_back, lambda: None
        give_back()


def check_budget(sources: Sequence[Source], streams: int, budget_bytes: int, interleave: int = 1) -> None:
    """ValueError if the cache cannot hold what `streams` streams of this process read at once."""
    largest = sum(max((file.bytes or 0 for file in source.files if file.remote), default=0) for source in sources)
    names = [file.url for source in sources for file in source.files if file.remote]
    needed = largest * streams * interleave
    if needed > budget_bytes:
        at_once = f"{streams} streams of this process" + (f" and {len(sources)} sources" if len(sources) > 1 else "")
        at_once += f", {interleave} each" if interleave > 1 else ""
        raise ValueError(
            f"{names[0]}: the shard cache of {budget_bytes / 1e9:g} GB (--data.cache_gb) is too small: shards of "
            f"{largest / len(sources) / 1e9:.2g} GB are read at once by the {at_once}, so it needs "
            f"{needed / 1e9:.3g} GB; raise it, or lower --data.streams (or --data.interleave)"
        )
