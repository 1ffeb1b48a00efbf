"""Where shards are: a folder, a file, a glob or a brace range of local paths, resolved to a list of files."""

import glob
import re
from pathlib import Path

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_RANGE = 10_000_000


def resolve(spec: str, suffixes: tuple[str, ...] = (".tar",)) -> list[Path]:
    """The files that `spec` names, each once, in an order that every process finds.

    `data/digits` is a folder (its files of `suffixes`), `data/*.tar` a glob, `data/s-{000..099}.tar` a range,
    `{a,b}/*.tar` alternatives. ValueError for a scheme such as https, FileNotFoundError where nothing is found.
    """
    if not spec.strip():
        raise ValueError(
            "no data given: name a folder of shards, a glob such as 'data/*.tar' or a range 's-{000..099}.tar'"
        )
    if re.match(r"[A-Za-z0-9+.-]+://", spec):
        raise ValueError(f"{spec}: shards are read from local paths, download them first and give the folder")
    files: dict[Path, None] = {}
    for pattern in expand_braces(spec):
        files |= dict.fromkeys(_files(pattern, suffixes))
    return list(files)


def expand_braces(spec: str) -> list[str]:
    """`s-{00..02}{a,b}` as a shell does it; a range keeps the width of its first number."""
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


def _files(pattern: str, suffixes: tuple[str, ...]) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.name.endswith(suffixes) and file.is_file())
        if not found:
            raise FileNotFoundError(f"{path}: no {' or '.join(suffixes)} file in this folder")
        return found
    if path.is_file():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not found:
        raise FileNotFoundError(f"{pattern}: no such file or folder, and no file matches it")
    return found
