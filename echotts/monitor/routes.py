"""The dashboard's HTTP routes: the page, its static files, and JSON data. Read-only."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from echotts import __version__
from echotts.monitor import alerts, series
from echotts.monitor.answers import answer, caching, failed, is_known, tag_of, unreadable
from echotts.monitor.exports import csv_of, download, json_of
from echotts.monitor.history import Cursor, History
from echotts.monitor.hosts import MetricsFile
from echotts.monitor.parsing import Event
from echotts.monitor.runs import Library, Run, differences
from echotts.monitor.samples import Item, Samples
from echotts.monitor.security import Access, Guard
from echotts.rundir.metrics import METRICS, unit_of

MAX_NAMES, MAX_RUNS = 100, 50  # per request
GZIP_BYTES, GZIP_LEVEL = 4096, 2  # shrinks a chart's points to a third; higher levels only cost time
STATIC = StaticFiles(directory=Path(__file__).parent / "static")
COLUMNS = {  # of the table of runs
    "loss": "loss/train",
    "heldout_loss": "heldout/loss",
    "samples_per_s": "throughput/samples_per_s",
}


def make_app(library: Library, access: Access, clock: Callable[[], float] = time.time) -> Starlette:
    """The application with every route of docs/dashboard.md, behind the guard."""
    routes = Routes(library, clock)
    table = {
        "/api/runs": routes.runs,
        "/api/compare": routes.compare,
        "/api/alerts": routes.alerts,
        "/api/runs/{run}/names": routes.names,
        "/api/runs/{run}/series": routes.series,
        "/api/runs/{run}/hosts": routes.hosts,
        "/api/runs/{run}/events": routes.events,
        "/api/runs/{run}/checkpoints": routes.checkpoints,
        "/api/runs/{run}/samples": routes.samples,
        "/api/runs/{run}/config": routes.config,
        "/api/runs/{run}/export.csv": routes.export_csv,
        "/api/runs/{run}/export.json": routes.export_json,
    }
    packed = [Middleware(GZipMiddleware, minimum_size=GZIP_BYTES, compresslevel=GZIP_LEVEL)]
    return Starlette(
        routes=[
            *(Route(path, endpoint, methods=["GET"], middleware=packed) for path, endpoint in table.items()),
            Route("/api/runs/{run}/audio/{item}", routes.audio, methods=["GET"]),
            Route("/api/runs/{run}/picture/{item}", routes.picture, methods=["GET"]),
            Route("/", page, methods=["GET"], middleware=packed),
            Mount("/static", STATIC, middleware=packed),
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={HTTPException: failed, OSError: unreadable},
    )


async def page(request: Request) -> Response:
    """The page itself; its files come from /static."""
    return await STATIC.get_response("page.html", request.scope)


class Routes:
    """The endpoints. Synchronous, so Starlette runs them in threads: they read files."""

    def __init__(self, library: Library, clock: Callable[[], float]):
        self._library = library
        self._clock = clock
        self._samples: dict[str, Samples] = {}

    def runs(self, request: Request) -> Response:
        now = self._clock()
        return answer(
            request, {"runs": [_run(run, now) for run in self._library.runs()], "now": now, "version": __version__}
        )

    def names(self, request: Request) -> Response:
        history = self._history(self._run(request))
        with history.lock:
            rows = [
                {
                    "name": name,
                    "description": METRICS.get(name, ""),
                    "unit": unit_of(name),
                    "count": count,
                    "last": next(iter(history.points(name, last=1).values), None),
                }
                for name, count in sorted(history.names().items())
            ]
        return answer(request, {"names": rows})

    def series(self, request: Request) -> Response:
        history = self._history(self._run(request))
        asked = request.query_params
        axis = asked.get("x", "step")
        if axis not in series.AXES:
            raise HTTPException(400, f"x must be one of {', '.join(series.AXES)}")
        points = int(_number(asked.get("points", "2000"), "points", 4, series.MAX_POINTS))
        smooth = _number(asked.get("smooth", "0"), "smooth", 0, 0.9999)
        since = Cursor.read(asked["since"]) if asked.get("since") else None
        if asked.get("since") and since is None:
            raise HTTPException(400, "since must be the cursor of an earlier response")
        names = _names(asked.get("names", ""))
        tag = tag_of(history, request.url.query)
        if is_known(request, tag):
            return Response(status_code=304, headers=caching(tag))
        return answer(request, series.answer(history, names, axis, points, smooth, since), tag)

    def hosts(self, request: Request) -> Response:
        return answer(request, {"hosts": self._run(request).hosts()})

    def events(self, request: Request) -> Response:
        history = self._history(self._run(request))
        asked = request.query_params.get("since")
        with history.lock:
            found = history.new_events(Cursor.read(asked) if asked else None)
            cursor = str(history.cursor)
        return answer(request, {"cursor": cursor, "events": _told_once(found)})

    def checkpoints(self, request: Request) -> Response:
        now = self._clock()
        rows = [
            {
                "step": found["step"],
                "age_s": None if found["written"] is None else max(now - found["written"], 0.0),
                "bytes": found["bytes"],
                "complete": found["complete"],
            }
            for found in self._run(request).checkpoints()
        ]
        return answer(request, {"checkpoints": rows})

    def samples(self, request: Request) -> Response:
        run = self._run(request)
        index = self._index(run)
        rows = [{"step": step, "items": [_item(run, index, item) for item in items]} for step, items in index.steps()]
        return answer(request, {"samples": rows})

    def audio(self, request: Request) -> Response:
        """A local file with support for ranges; one in a bucket as a whole."""
        index, item = self._item(request)
        headers = {"Cache-Control": "private, max-age=3600"}
        path = index.local_path(item)
        if path is not None:
            return FileResponse(path, media_type=item.media_type, headers=headers)
        return Response(index.audio(item), media_type=item.media_type, headers=headers)

    def picture(self, request: Request) -> Response:
        index, item = self._item(request)
        picture = index.picture(item)
        if picture is None:
            raise HTTPException(404, "this file contains no audio")
        return Response(picture, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    def config(self, request: Request) -> Response:
        return answer(request, {"config": self._run(request).config()})

    def compare(self, request: Request) -> Response:
        ids = [run_id for run_id in request.query_params.get("runs", "").split(",") if run_id]
        if len(ids) > MAX_RUNS:
            raise HTTPException(400, f"at most {MAX_RUNS} runs per request")
        runs = {run_id: self._library.find(run_id) for run_id in ids}
        configs = {run_id: run.config() for run_id, run in runs.items() if run}
        return answer(request, {"differences": differences(configs)})

    def alerts(self, request: Request) -> Response:
        rows = [
            {"run": alert.run, "kind": alert.kind, "since": alert.since, "message": alert.message, "host": alert.host}
            for alert in alerts.alerts(self._library, self._clock())
        ]
        return answer(request, {"alerts": rows})

    def export_csv(self, request: Request) -> Response:
        """name, step, time, value, one line per value: names are written at different steps."""
        run = self._run(request)
        return download(csv_of(*self._export(request, run)), run, "csv", "text/csv; charset=utf-8")

    def export_json(self, request: Request) -> Response:
        run = self._run(request)
        return download(json_of(*self._export(request, run)), run, "json", "application/json")

    def _export(self, request: Request, run: Run) -> tuple[History, list[str]]:
        history = self._history(run, whole=True)
        asked = request.query_params.get("names", "")
        return history, _names(asked) if asked else sorted(history.names())

    def _run(self, request: Request) -> Run:
        run = self._library.find(request.path_params["run"])
        if run is None:
            raise HTTPException(404, "there is no such run")
        return run

    def _history(self, run: Run, *, whole: bool = False) -> History:
        history = run.history(whole=whole)
        self._library.make_room()
        return history

    def _index(self, run: Run) -> Samples:
        return self._samples.setdefault(run.id, Samples(run.folder))

    def _item(self, request: Request) -> tuple[Samples, Item]:
        index = self._index(self._run(request))
        item = index.find(request.path_params["item"])
        if item is None:
            raise HTTPException(404, "there is no such sample")
        return index, item


def _run(run: Run, now: float) -> dict[str, Any]:
    status = run.status(now)
    opened = run.opened
    known = opened.known() if opened else {name for end in run.ends() for name in end.numbers}
    missing = run.missing(known)
    if run.is_rough:
        missing.insert(0, "still reading: the charts show a sample of the lines for now")
    return {
        "id": run.id,
        "name": run.name,
        "status": status.name,
        "why": status.why,
        "step": status.step,
        "steps": status.steps,
        "progress": status.progress,
        "left_s": status.left_s,
        "last_time": status.last_time,
        "started_time": status.started_time,
        "metrics_where": status.metrics_where,
        "bad_lines": opened.bad if opened else 0,
        "truncated": opened.cuts if opened else 0,
        "missing": missing,
        **{key: run.latest(name) for key, name in COLUMNS.items()},
    }


def _told_once(found: list[tuple[MetricsFile, Event]]) -> list[dict[str, Any]]:
    """Events by time; the same event of several processes at the same step with the same message is listed once."""
    told: dict[tuple[int, str, str], tuple[list[str], Event]] = {}
    for file, event in sorted(found, key=lambda pair: (pair[1].time, pair[1].process)):
        hosts, _ = told.setdefault((event.step, event.event, event.message), ([], event))
        hosts.append(file.host)
    return [
        {
            "time": event.time,
            "step": event.step,
            "host": hosts[0] if len(hosts) == 1 else f"{hosts[0]} and {len(hosts) - 1} more",
            "event": event.event,
            "message": event.message,
            "values": event.values,
        }
        for hosts, event in told.values()
    ]


def _item(run: Run, index: Samples, item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "text": item.text,
        "heard": item.heard,
        "reference_id": item.reference_id,
        "picture": f"api/runs/{run.id}/picture/{item.id}",
        "seconds": index.seconds(item),
    }


def _names(asked: str) -> list[str]:
    names = list(dict.fromkeys(name for name in asked.split(",") if name))
    if not names or len(names) > MAX_NAMES:
        raise HTTPException(400, f"names: 1 to {MAX_NAMES} names, separated by commas")
    return names


def _number(text: str, what: str, least: float | int, most: float | int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise HTTPException(400, f"{what} must be a number from {least:g} to {most:g}")
    return number
