"""Streams the values of a run as a CSV or JSON file."""

import csv
import io
import math
from collections.abc import Iterator

import numpy as np
import orjson
from starlette.responses import Response, StreamingResponse

from echotts.monitor.history import History
from echotts.monitor.runs import Run


def csv_of(history: History, names: list[str]) -> Iterator[bytes]:
    """Lines of name, step, time, value; names that a spreadsheet would take for a formula are quoted."""
    yield b"name,step,time,value\n"
    for name in names:
        points = history.points(name)
        lines = io.StringIO()
        csv.writer(lines, lineterminator="").writerow([f"'{name}" if name[:1] in "=+-@\t\r" else name])
        head = lines.getvalue().encode()
        for start in range(0, len(points.steps), 10_000):
            rows = zip(*(part[start : start + 10_000] for part in points), strict=True)
            # All digits of the stored precision; nothing for a number that is not finite.
            told = ((when, step, str(value).encode() if math.isfinite(value) else b"") for when, step, value in rows)
            yield b"".join(b"%s,%d,%.3f,%s\n" % (head, step, when, digits) for when, step, digits in told)


def json_of(history: History, names: list[str]) -> Iterator[bytes]:
    """{"series": {name: {"step": [...], "time": [...], "value": [...]}}}"""
    yield b'{"series":{'
    for place, name in enumerate(names):
        points = history.points(name)
        body = {"step": points.steps, "time": points.times, "value": points.values}
        written = orjson.dumps(
            {key: np.ascontiguousarray(value) for key, value in body.items()}, option=orjson.OPT_SERIALIZE_NUMPY
        )
        yield b"%s%s:%s" % (b"," if place else b"", orjson.dumps(name), written)
    yield b"}}"


def download(body: Iterator[bytes], run: Run, kind: str, media_type: str) -> Response:
    """A file download, named after the run."""
    name = "".join(character if character.isalnum() or character in "-_." else "_" for character in run.name)
    headers = {"Content-Disposition": f'attachment; filename="{name.encode("ascii", "replace").decode()}.{kind}"'}
    return StreamingResponse(body, headers=headers, media_type=media_type)
