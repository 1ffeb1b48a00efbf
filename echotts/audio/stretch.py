"""Speech at another speed with its pitch: WSOLA (Verhelst and Roelands, ICASSP 1993), on samples that may still arrive.

Output is made HOP_S at a time: the input is read at the position of the output times the speed, moved by at most
REACH_S to where it is most like the natural continuation of what was read before, and cross-faded with that.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from echotts.audio.levels import Samples

HOP_S = 0.01
REACH_S = 0.01  # both ways: a whole period of the deepest voice, 50 Hz


def stretched(blocks: Iterable[Samples], count: int, rate: int, speed: float) -> Iterator[Samples]:
    """`count` samples in blocks, `speed` times as fast: round(count / speed) samples, the same for any blocks."""
    if speed == 1.0:
        yield from blocks
        return
    hop, reach, source = round(HOP_S * rate), round(REACH_S * rate), iter(blocks)
    rise = np.sin(np.linspace(0, np.pi / 2, hop, dtype=np.float32)) ** 2
    held, start = np.zeros(0, np.float32), 0  # input from sample `start` on
    total, made, natural = stretched_count(count, speed), 0, 0
    ready: list[Samples] = []
    while made < total:
        target = round(made * speed)
        while start + len(held) < (needed := max(target + reach, natural) + 2 * hop):
            if ready:
                yield np.concatenate(ready)
                ready.clear()
            block = next(source, None)
            held = np.append(held, np.zeros(needed - start - len(held), np.float32) if block is None else block)
        first = max(0, target - reach)
        continued = held[natural - start :][: 2 * hop]
        among = held[first - start : target + reach + 2 * hop - start]
        position = first + _most_alike(continued, among, target - first)
        faded = continued[:hop] * rise[::-1] + held[position - start :][:hop] * rise
        ready.append(faded[: total - made])
        made, natural = made + hop, position + hop
        spent = max(0, min(natural, round(made * speed) - reach) - start)
        held, start = held[spent:], start + spent
    if ready:
        yield np.concatenate(ready)


def stretch(samples: Samples, rate: int, speed: float) -> Samples:
    """All of `samples`, `speed` times as fast."""
    return np.concatenate([samples[:0], *stretched([samples], len(samples), rate, speed)])


def stretched_count(count: int, speed: float) -> int:
    """How many samples `count` become."""
    return round(count / speed)


def _most_alike(continued: Float[np.ndarray, " n"], among: Float[np.ndarray, " m"], usual: int) -> int:
    """Where in `among` is what is most like `continued`, by correlation; `usual` in silence."""
    if not continued.any():
        return usual
    power = np.cumsum(np.append(0.0, np.square(among, dtype=np.float64)))
    power = power[len(continued) :] - power[: -len(continued)]
    scores = np.correlate(among, continued, "valid") / np.sqrt(np.maximum(power, 1e-9))
    return int(np.argmax(scores))
