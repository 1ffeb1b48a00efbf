"""Parses data arguments: one source of shards, or several with weights; local paths, globs and brace ranges.

data/digits                                           a folder: its .tar files
'data/*.tar'   s-{000..099}.tar   {a,b}/*.tar         globs, ranges, alternatives
hf://datasets/ORG/NAME@REV/path-{000..999}.tar        the Hugging Face Hub (hub.py)
https://host/path-{000..099}.tar   gs://bucket/*.tar  the rest of the network (listing.py)
A + B                                                 both, each shard once per epoch
0.7 * A + 0.3 * B                                     seven samples of A for every three of B, throughout the run
"""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from echotts.data.format.tars import begins_like_a_tar

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WEIGHTED = re.compile(r"([0-9][0-9.eE+-]*) +\* +(.+)")
MAX_RANGE = 10_000_000

TABLE_NAMES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")


@dataclass(frozen=True)
class Part:
    """One term of a data argument. `weight` is None if no weights are given."""

    spec: str
    weight: float | None = None


def split_parts(argument: str) -> list[Part]:
    """The terms of `A + B` or `0.7 * A + 0.3 * B`. ValueError if a weight is missing or not above 0."""
    _check_given(argument)
    parts = []
    for term in re.split(r"\s\+\s", argument.strip()):
        weighted = _WEIGHTED.fullmatch(term.strip())
        try:
            parts.append(Part(weighted[2].strip(), float(weighted[1])) if weighted else Part(term.strip()))
        except ValueError:
            raise ValueError(f"{argument}: the weight {term.split()[0]!r} is not a number") from None
        if not parts[-1].spec:
            raise ValueError(f"{argument}: one side of a + is empty")
    weights = [part.weight for part in parts]
    if any(weight is not None for weight in weights):
        if None in weights:
            lacking = parts[weights.index(None)].spec
            raise ValueError(f"{argument}: {lacking} has no weight: give each one, as in '0.7 * A + 0.3 * B', or none")
        if not all(0 < weight < float("inf") for weight in weights if weight is not None):
            raise ValueError(f"{argument}: weights must be above 0")
    return parts


def check_local(argument: str) -> None:
    """ValueError for an invalid data argument or a single file that is no tar, FileNotFoundError for missing files."""
    for part in split_parts(argument):
        if not scheme_of(part.spec):
            files = resolve(part.spec)
            # One bad shard of several is skipped and counted while reading; a lone one leaves nothing to read.
            if len(files) == 1 and files[0].suffix != ".gz" and not begins_like_a_tar(files[0]):
                raise ValueError(
                    f"{files[0]}: is not a tar: give shards, which `echotts data prepare` makes from recordings"
                )


def scheme_of(spec: str) -> str:
    """`https` of https://host/x.tar, in lower case; empty for a local path."""
    found = _SCHEME.match(spec)
    return found[1].lower() if found else ""


def is_glob(pattern: str) -> bool:
    return any(letter in pattern for letter in "*?[")


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, such as the `._s-000.tar` that macOS leaves beside s-000.tar."""
    return os.path.basename(name).startswith(".")


def is_shard(name: str, suffixes: tuple[str, ...] = (".tar",)) -> bool:
    return name.endswith(suffixes) and not is_hidden(name)


def resolve(spec: str, suffixes: tuple[str, ...] = (".tar",)) -> list[Path]:
    """The local files that `spec` names, without duplicates, in an order that is the same in every process.

    `data/digits` is a folder (its files with `suffixes`), `data/*.tar` a glob, `data/s-{000..099}.tar` a range,
    `{a,b}/*.tar` alternatives. ValueError for a scheme such as https, FileNotFoundError if nothing is found.
    """
    _check_given(spec)
    if scheme_of(spec):
        raise ValueError(f"{spec}: this command reads local files: download them first and give the folder")
    files: dict[Path, None] = {}
    for pattern in expand_braces(spec):
        files |= dict.fromkeys(_files(pattern, suffixes))
    return list(files)


def expand_braces(spec: str) -> list[str]:
    """Expands `s-{00..02}{a,b}` like a shell; a range keeps the width of its first number."""
    found = _BRACES.search(spec)
    if found is None:
        return [spec]
    numbers = _RANGE.fullmatch(found[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) > MAX_RANGE:
            raise ValueError(f"{spec}: a range of more than {MAX_RANGE} shards")
        step = 1 if last >= first else -1
        choices = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + step, step)]
    elif "," in found[1]:
        choices = found[1].split(",")
    else:
        raise ValueError(f"{spec}: {found[0]} is neither a range such as {{000..099}} nor a list such as {{a,b}}")
    head, tail = spec[: found.start()], spec[found.end() :]
    return [head + choice + rest for choice in choices for rest in expand_braces(tail)]


def _check_given(argument: str) -> None:
    if not argument.strip():
        raise ValueError(
            "no data given: name a folder of shards, a glob such as 'data/*.tar', a range 's-{000..099}.tar' "
            "or hf://datasets/ORG/NAME"
        )


def _files(pattern: str, suffixes: tuple[str, ...]) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if is_shard(file.name, suffixes) and file.is_file())
        if not found:
            raise FileNotFoundError(f"{path}: no {' or '.join(suffixes)} file in this folder{_recordings_hint(path)}")
        return found
    if path.is_file():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if not is_hidden(name))
    found = [file for file in found if file.is_file()]
    if not found:
        raise FileNotFoundError(f"{pattern}: no such file or folder, and no file matches it")
    return found


def _recordings_hint(folder: Path) -> str:
    """A hint for users who gave the recordings themselves."""
    from echotts.audio import AUDIO_SUFFIXES  # imported lazily: reading shards needs no audio library

    recordings = any(file.suffix.lower() in AUDIO_SUFFIXES for file in folder.rglob("*"))
    if not recordings and not any((folder / name).is_file() for name in TABLE_NAMES):
        return ""
    return f": it holds recordings: run `echotts data prepare --source {folder} --output DATA` first, and give DATA"
