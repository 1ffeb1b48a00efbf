"""Data for charts: downsampled without losing spikes, smoothed, over a choice of x axes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from echotts.monitor.history import Cursor, History, Points

AXES = ("step", "time", "samples", "hours")
COUNTED = {"samples": "data/samples_seen", "hours": "data/audio_hours"}
FORGOTTEN = 1e-6  # weight below which the past of a smooth line is ignored
CHUNK, PIECE = 256, 1 << 16  # values
MAX_POINTS = 20_000


def answer(
    history: History, names: list[str], axis: str, points: int, smooth: float, since: Cursor | None
) -> dict[str, Any]:
    """The body of /api/runs/{id}/series, with numbers as arrays.

    `smooth` is the weight of the past in the smooth line: from 0, which omits the line, to below 1.
    """
    with history.lock:
        news = {name: None if since is None else history.newer(name, since) for name in names}
        fresh = None in news.values()
        known = _counted(history, axis)
        series = {}
        for name, new in news.items():
            reach = 0 if smooth <= 0 else math.ceil(math.log(FORGOTTEN) / math.log(smooth))
            found = history.points(name, last=None if fresh or new is None else new + reach)
            old = 0 if fresh or new is None else len(found.steps) - new
            series[name] = _line(found, old, lambda shown: x_axis(history, shown, axis, known), points, smooth)
        return {"cursor": str(history.cursor), "reset": since is not None and fresh, "series": series}


def _counted(history: History, axis: str) -> Points | None:
    """The lines that count samples or hours, for an axis that needs them."""
    if axis not in COUNTED:
        return None
    known = history.points(COUNTED[axis])
    return Points(*(part[np.isfinite(known.values)] for part in known))


def x_axis(history: History, points: Points, axis: str, known: Points | None) -> np.ndarray:
    """The x of each point, never decreasing; interpolated from other lines if a line does not have it itself."""
    if axis == "time" or not len(points.steps):
        return np.maximum.accumulate(points.times)
    if axis == "step":
        if points.steps.any() and np.all(np.diff(points.steps) >= 0):
            return points.steps
        main = history.points("loss/train")  # watchdog lines have a reliable time but no step
        return np.interp(points.times, main.times, main.steps) if len(main.times) else np.sort(points.steps)
    if known is None or not len(known.steps):
        return np.full(len(points.steps), math.nan)
    return np.round(np.interp(points.steps, known.steps, known.values), 6)


def _line(
    found: Points, old: int, x_of: Callable[[Points], np.ndarray], points: int, smooth: float
) -> dict[str, np.ndarray]:
    """The line sent for the points after the first `old` ones, which are used only for smoothing."""
    kept = old + spikes(found.values[old:], points)
    shown = Points(*(part[kept] for part in found))
    line = {"x": np.ascontiguousarray(x_of(shown)), "y": shown.values}
    if smooth > 0:
        line["smooth"] = smoothed(found.values, smooth)[kept].astype(np.float32)
    return line


def spikes(values: np.ndarray, points: int) -> np.ndarray:
    """Sorted indices of at most `points` values: the minimum and maximum of equal stretches."""
    count = len(values)
    if count <= points:
        return np.arange(count)
    stretches = max(points // 2 - 1, 1)
    length = -(-(count - 1) // stretches)  # first and last are always shown
    padded = np.full(stretches * length, np.nan, values.dtype)
    padded[: count - 1] = values[:-1]
    rows = padded.reshape(stretches, length)
    starts = np.arange(stretches) * length
    least = starts + np.where(np.isnan(rows), np.inf, rows).argmin(axis=1)
    most = starts + np.where(np.isnan(rows), -np.inf, rows).argmax(axis=1)
    kept = np.unique(np.concatenate([[0], least, most, [count - 1]]))
    return kept[kept < count]


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Debiased exponential moving average (Adam, section 3); NaNs are skipped, and stay NaN.

    a[i] = weight * a[i - 1] + (1 - weight) * values[i] with a[-1] = 0, divided by 1 - weight^(i + 1), so that the first
    values are not weighted more than later ones. Computed in chunks, vectorised with powers of `weight`.
    """
    averages = np.full(len(values), np.nan)
    average, count = 0.0, 0
    for start in range(0, len(values), PIECE):  # bounds memory for millions of values
        piece = values[start : start + PIECE]
        good = np.flatnonzero(np.isfinite(piece))
        if len(good):
            inputs = piece[good].astype(np.float64)
            line = _smooth_piece(inputs, weight, average)
            averages[start + good] = line / -np.expm1(np.arange(count + 1, count + len(line) + 1) * math.log(weight))
            average, count = line[-1], count + len(line)
    return averages


def _smooth_piece(inputs: np.ndarray, weight: float, before: Any) -> np.ndarray:
    # powers of a small weight underflow, but then a short chunk suffices
    chunk = max(1, min(CHUNK, int(200 / -math.log10(weight))))
    chunks = -(-len(inputs) // chunk)
    padded = np.zeros(chunks * chunk)
    padded[: len(inputs)] = inputs
    powers = weight ** np.arange(1, chunk + 1)
    within = np.cumsum(padded.reshape(chunks, chunk) * ((1 - weight) / powers), axis=1) * powers
    carried = np.empty(chunks)
    for number, end in enumerate(within[:, -1]):
        carried[number] = before
        before = powers[-1] * before + end
    return (within + carried[:, None] * powers).reshape(-1)[: len(inputs)]
