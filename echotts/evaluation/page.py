"""Writes the report folder of an evaluation: results.jsonl, table.json, the recordings, and an HTML page."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echotts.audio import write_audio
from echotts.evaluation.clips import RATE_HZ, Task
from echotts.evaluation.report import COLUMNS, Recording, Result, Score, table_rows, to_report
from echotts.files import write_json, write_whole

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem }
th, td { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left; vertical-align: top }
.figures td + td, .figures th + th { text-align: right; font-variant-numeric: tabular-nums }
audio { width: 15rem; height: 2rem; display: block } small { color: #666 } .wrong { color: #a00 }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd } th, td { border-color: #444 }
.wrong { color: #f88 } small { color: #999 } }
"""


def write_report(
    folder: Path,
    scores: Sequence[Score],
    tasks: Sequence[Task],
    spoken: Mapping[str, Sequence[Recording]],
    decoded: Sequence[Recording],
    about: Mapping[str, Any],
) -> None:
    """`spoken`: speech of each model, one per task; `decoded`: the recordings after a round trip through the codec.

    References and human recordings are added to the page. The files of speech are tagged as synthetic.
    """
    heard = {
        "reference": [(task.reference.samples, RATE_HZ) for task in tasks],
        "recordings": [(task.recording.samples, RATE_HZ) for task in tasks],
        **spoken,
        "codec round trip": decoded,
    }
    places = {
        system: _save(folder, system, tasks, recordings, model=system if system in spoken else None)
        for system, recordings in heard.items()
    }
    lines = [json.dumps(one.to_dict(), ensure_ascii=False) for score in scores for one in score.results]
    write_whole(folder / "results.jsonl", "\n".join(lines) + "\n")
    write_json(folder / "table.json", to_report(scores, about))
    write_whole(folder / "index.html", _page(scores, tasks, places, about))


def _save(
    folder: Path, system: str, tasks: Sequence[Task], recordings: Sequence[Recording], model: str | None
) -> list[Path | None]:
    """Writes recordings below `folder` and returns their relative paths; None for an empty one."""
    places: list[Path | None] = []
    for number, (task, (samples, rate)) in enumerate(zip(tasks, recordings, strict=True)):
        place = Path("audio") / _plain(system) / f"{number:04d}_{_plain(task.key)}.flac"
        if len(samples):
            write_audio(folder / place, samples, rate, model=model)
        places.append(place if len(samples) else None)
    return places


def _page(
    scores: Sequence[Score],
    tasks: Sequence[Task],
    places: Mapping[str, Sequence[Path | None]],
    about: Mapping[str, Any],
) -> str:
    figures = "".join(_row("td", (html.escape(cell) for cell in cells)) for cells in table_rows(scores))
    named = ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)
    judged = {score.system: score.results for score in scores}
    order = sorted(range(len(tasks)), key=lambda i: -scores[0].results[i].errors.words_wrong)  # the worst first
    texts = [
        f"{html.escape(task.text)}<br><small>{html.escape(task.key)}, {html.escape(task.speaker)}</small>"
        for task in tasks
    ]
    clips = "".join(
        _row("td", [texts[i], *(_cell(places[s][i], judged[s][i] if s in judged else None) for s in places)])
        for i in order
    )
    head = _row("th", ["text", *map(html.escape, places)])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>echotts eval</title><style>{STYLE}</style>'
        f"<h1>{html.escape(scores[0].system)}</h1><p>{html.escape(named)}</p>"
        f'<table class="figures">{_row("th", map(html.escape, COLUMNS))}{figures}</table>'
        f"<h2>Clips, the worst first</h2><table>{head}{clips}</table></html>\n"
    )


def _cell(place: Path | None, result: Result | None) -> str:
    source = "" if place is None else f' src="{html.escape(place.as_posix())}"'
    player = f'<audio controls preload="none"{source}></audio>'
    if result is None:
        return player
    wrong = ' class="wrong"' if result.errors.words_wrong else ""
    alike = "" if result.similarity is None else f", similarity {result.similarity:.2f}"
    return (
        f"{player}<span{wrong}>{html.escape(result.heard) or '(nothing)'}</span>"
        f"<br><small>{result.errors.words_wrong} of {result.errors.words} words wrong{alike}</small>"
    )


def _row(cell: str, texts: Any) -> str:
    return f"<tr>{''.join(f'<{cell}>{text}</{cell}>' for text in texts)}</tr>"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[-60:] or "unnamed"
