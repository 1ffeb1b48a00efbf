"""Shared by encode, decode, compress and decompress: pairs of input and output files, and processing many of them."""

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from echotts.cli.app import UsageError
from echotts.cli.progress import Progress

if TYPE_CHECKING:
    from echotts.codec import Codec

LOGGER = logging.getLogger(__name__)

Pair = tuple[Path, Path]
Work = Callable[["Codec", Path, Path, Callable[[float], None]], str]
"""Processes one file: (codec, source, target, callback for seconds of audio done) -> a line for the log."""


def with_flags(argv: list[str]) -> list[str]:
    """Rewrites `INPUT OUTPUT ...` as `--input INPUT --output OUTPUT ...`."""
    plain = next((n for n, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    flags = [part for flag, value in zip(("--input", "--output"), argv[:plain], strict=False) for part in (flag, value)]
    return flags + argv[min(plain, 2) :]


def pairs_of(source: Path, target: Path, suffixes: tuple[str, ...], new_suffix: str) -> list[Pair]:
    """Pairs of input and output files: a single one, or a mirrored tree. Checks that the outputs can be written."""
    from echotts.files import check_outputs

    pairs = _matched(source, target, suffixes, new_suffix)
    check_outputs([output for _, output in pairs], [source for source, _ in pairs])
    return pairs


def share_of(pairs: list[Pair], shard: str, resume: bool) -> list[Pair]:
    """The pairs of shard I/N: every Nth file from the Ith on, by name; with `resume` only those without output."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    if not match or int(match[1]) >= int(match[2]):
        raise UsageError(f"--shard {shard!r}: give I/N, such as 0/4, 1/4, 2/4 and 3/4 for four processes")
    mine = pairs[int(match[1]) :: int(match[2])]
    return [(source, target) for source, target in mine if not (resume and target.exists())]


def run_pairs(codec: "Codec", pairs: list[Pair], work: Work, title: str, jobs: int | None, total_s: float) -> int:
    """Processes all pairs on all local devices; returns the exit code.

    A file that fails is logged and skipped, unless it is the only one. `total_s` is the duration of the only one.
    """
    with Progress() as progress:
        if len(pairs) == 1:
            done = 0.0

            def report(seconds: float) -> None:
                nonlocal done
                done = min(done + seconds, total_s)
                progress(f"{title}, seconds", int(done), int(total_s))

            print(work(codec, *pairs[0], report if total_s > _LONG_S else lambda seconds: None))
            return 0
        failures = 0
        for done, failure in enumerate(_outcomes(codec, pairs, work, jobs), 1):
            failures += failure
            progress(title, done, len(pairs), failures)
        print(f"{len(pairs) - failures} of {len(pairs)} files, {failures} skipped")
        return 1 if failures else 0


_LONG_S = 60.0  # shorter recordings get no progress bar


def _outcomes(codec: "Codec", pairs: list[Pair], work: Work, jobs: int | None) -> Iterator[bool]:
    """Yields for each pair, in order of completion, whether it failed. Jobs are assigned to devices round-robin."""
    import jax

    devices = jax.local_devices()
    codecs = [codec] if len(devices) == 1 else [codec.on_device(device) for device in devices]

    def attempt(number: int, pair: Pair) -> bool:
        try:
            LOGGER.debug("%s", work(codecs[number % len(codecs)], *pair, lambda seconds: None))
        except (ValueError, FileNotFoundError) as error:
            LOGGER.warning("skipped: %s", error)
            return True
        return False

    with ThreadPoolExecutor(jobs or len(devices)) as pool:
        futures = [pool.submit(attempt, number, pair) for number, pair in enumerate(pairs)]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _matched(source: Path, target: Path, suffixes: tuple[str, ...], new_suffix: str) -> list[Pair]:
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if not source.is_dir():
        return [(source, target / source.with_suffix(new_suffix).name if target.is_dir() else target)]
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes)
    if not files:
        raise FileNotFoundError(f"{source}: no {', '.join(suffixes)} in this folder")
    if target.is_file():
        raise UsageError(f"--output {target} is a file, but --input is a folder: give a folder")
    pairs = [(path, target / path.relative_to(source).with_suffix(new_suffix)) for path in files]
    if len({target for _, target in pairs}) < len(pairs):
        raise ValueError(
            f"{source}: files that differ only in their suffix would have the same name in {target}: rename them"
        )
    return pairs
