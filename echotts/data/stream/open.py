"""A data set opened for training: its shards, the cache of those that are elsewhere, and the stream over them."""

import resource
from collections.abc import Sequence
from pathlib import Path

from echotts.config import DataConfig
from echotts.data.remote.cache import Cache, default_root
from echotts.data.remote.dataset import Dataset
from echotts.data.remote.retry import RetryPolicy
from echotts.data.remote.store import AHEAD_UNITS, Shards, check_budget
from echotts.data.stream.order import Rows
from echotts.data.stream.stream import Stream
from echotts.latents import LatentScale
from echotts.text.tokens import Tokenizer

OTHER_FILES = 512  # that a training has open beside its shards


def open_stream(
    dataset: Dataset,
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    own_rows: Sequence[int] | None = None,
    *,
    beside: Stream | None = None,
) -> Stream:
    """The stream of a data set; the rows of a batch that are this process's, None: all of them.

    `beside` is the stream of the run that this one goes with: it shares the cache and the scale of latents, and
    fetches nothing ahead. ValueError where the cache is too small for the shards, or the data do not say the
    statistics that `config.latent_scale` asks for.
    """
    cache = beside.shards.cache if beside else None
    streams = len(Rows(config.batch_size, config.streams, own_rows).own_streams)
    _allow_open_files(streams * len(dataset.sources) * config.interleave)
    if dataset.remote:
        budget_bytes = round(config.cache_gb * 1e9)
        check_budget(dataset.sources, streams, budget_bytes, config.interleave)
        root = Path(config.cache_dir).expanduser() if config.cache_dir else default_root()
        cache = cache or Cache(root, budget_bytes)
    policy = RetryPolicy(deadline_s=config.fetch_deadline_s)
    shards = Shards(dataset.sources, cache, policy, 0 if beside else AHEAD_UNITS)
    scale = beside.scale if beside else _latent_scale(dataset, config)
    return Stream(shards, config, seed, tokenizer, dataset.silence, own_rows, scale)


def _allow_open_files(shards: int) -> None:
    """Raises this process's limit of open files where so many shards at once would pass it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if shards + OTHER_FILES > soft != resource.RLIM_INFINITY:
        if hard != resource.RLIM_INFINITY and shards + OTHER_FILES > hard:
            raise ValueError(
                f"{shards} shards are open at once, this process may have {hard} files: lower --data.interleave, or "
                "raise `ulimit -n`"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (shards + OTHER_FILES, hard))


def _latent_scale(dataset: Dataset, config: DataConfig) -> LatentScale:
    try:
        return LatentScale.measured(config.latent_scale, dataset.info.latent_mean, dataset.info.latent_std)
    except ValueError as error:
        raise ValueError(f"{dataset.pin['data']}: {error}: `data prepare` writes them to dataset.json") from None
