"""Held-out loss by timestep: the same batches, times and noise each time, so that two steps can be compared."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from echotts.config import Config
from echotts.data.stream.batch import Batch
from echotts.latents import UNSCALED, LatentScale
from echotts.model import Params
from echotts.rundir.metrics import TIMESTEP_BUCKETS, timestep_bucket_names
from echotts.training.feed import to_devices
from echotts.training.inputs import HELDOUT_SEED
from echotts.training.step import make_measure_step


class Heldout:
    """The held-out measurement of one run. `read` gives this process's rows of the batches; it is called once."""

    def __init__(self, config: Config, mesh: Mesh, read: Callable[[], list[Batch]], scale: LatentScale = UNSCALED):
        """`scale` is that of the batches' latents."""
        self._scale = scale
        self._measure = make_measure_step(config, mesh)
        self._mesh = mesh
        self._batches = read()

    def references(self, most: int) -> list[np.ndarray]:
        """The first reference latents (m, c) among this process's rows, at most so many, as the codec has them."""
        rows = [row for batch in self._batches for row in zip(batch.speaker_latent, batch.speaker_mask, strict=True)]
        voices = [np.asarray(latent)[np.asarray(mask)] for latent, mask in rows if np.any(mask)]
        return [self._scale.restore(voice) for voice in voices[:most]]

    def losses(self, params: Params) -> dict[str, float]:
        """The loss over all batches and the mean squared error of the rows in each part of [0, 1].

        A part without a row is left out.
        """
        key = jax.random.key(HELDOUT_SEED)
        seen: list[dict[str, Any]] = []
        for number, rows in enumerate(self._batches):
            batch = to_devices(rows, self._mesh)
            seen.append(jax.device_get(self._measure(params, batch, jax.random.fold_in(key, number))))
        weights = np.array([aux["weight"] for aux in seen])
        losses = np.array([aux["loss"] for aux in seen])
        t, row_loss, kept = (np.concatenate([aux[name] for aux in seen]) for name in ("t", "row_loss", "kept"))
        figures = {"heldout/loss": float(np.sum(weights * losses) / np.sum(weights))}
        bucket = np.minimum((t * TIMESTEP_BUCKETS).astype(int), TIMESTEP_BUCKETS - 1)
        for index, name in enumerate(timestep_bucket_names()):
            rows = kept & (bucket == index)
            if rows.any():
                figures[name] = float(row_loss[rows].mean())
        return figures
