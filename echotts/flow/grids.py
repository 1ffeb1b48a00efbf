"""The times at which a sampler evaluates the velocity: from 1 (noise) to 0 (data)."""

from typing import Literal

import numpy as np
from jaxtyping import Float

Grid = Literal["even", "epss"]

# Steps of F5-TTS's empirically pruned grids, in 32nds of its time, which runs from noise (0) to data (1).
EPSS: dict[int, tuple[int, ...]] = {
    5: (0, 2, 4, 8, 16, 32),
    6: (0, 2, 4, 6, 8, 16, 32),
    7: (0, 2, 4, 6, 8, 16, 24, 32),
    10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
}


def time_grid(steps: int, grid: Grid = "even", sway: float = 0.0) -> Float[np.ndarray, " n"]:
    """`steps` + 1 times, float32, from 1 down to 0.

    "epss": F5-TTS's grid for few steps; ValueError if there is none. With s = 1 - t, sway moves a time by
    sway (cos(pi s / 2) - 1 + s): -1, F5-TTS's value, spends more steps near the noise, 0 none (arXiv 2410.06885).
    """
    if grid == "epss":
        if steps not in EPSS:
            raise ValueError(f"the epss grid knows {', '.join(map(str, EPSS))} steps, not {steps}")
        times = 1 - np.asarray(EPSS[steps], np.float32) / 32
    else:
        times = 1 - np.arange(steps + 1, dtype=np.float32) / np.float32(steps)
    if sway:
        s = 1 - times.astype(np.float64)
        times = np.clip(1 - (s + sway * (np.cos(np.pi * s / 2) - 1 + s)), 0, 1).astype(np.float32)
        times[0], times[-1] = 1, 0
    return times
