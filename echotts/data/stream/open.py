"""Opens a dataset for training: its shards, the cache of remote ones, and the stream over them."""

import resource
from collections.abc import Sequence
from pathlib import Path

from echotts.config import DataConfig
from echotts.data.remote.cache import Cache, default_root
from echotts.data.remote.dataset import Dataset
from echotts.data.remote.retry import RetryPolicy
from echotts.data.remote.store import AHEAD_UNITS, Shards, check_budget
from echotts.data.stream.order import Rows
from echotts.data.stream.stream import Stream, choose_lanes
from echotts.latents import LatentScale
from echotts.text.tokens import Tokenizer

OTHER_FILES = 512  # open files of a training other than shards


def open_stream(
    dataset: Dataset,
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    own_rows: Sequence[int] | None = None,
    *,
    beside: Stream | None = None,
    scale: LatentScale | None = None,
) -> Stream:
    """The stream of a dataset. `own_rows` are this process's rows of a batch, None means all.

    `beside` is the training stream that this one (held-out data) accompanies: it shares cache and latent scale, and
    nothing is prefetched. `scale` replaces the latent scale measured on the data. ValueError if the cache is too small
    for the shards, or the dataset lacks the statistics that `config.latent_scale` needs.
    """
    cache = beside.shards.cache if beside else None
    streams = len(Rows(config.batch_size, config.streams, own_rows).own_streams)
    lanes = 1 if beside and config.interleave is None else choose_lanes(dataset.sources, config)
    _allow_open_files(streams * len(dataset.sources) * lanes)
    if dataset.remote:
        budget_bytes = round(config.cache_gb * 1e9)
        check_budget(dataset.sources, streams, budget_bytes, lanes)
        root = Path(config.cache_dir).expanduser() if config.cache_dir else default_root()
        cache = cache or Cache(root, budget_bytes)
    policy = RetryPolicy(deadline_s=config.fetch_deadline_s)
    shards = Shards(dataset.sources, cache, policy, 0 if beside else AHEAD_UNITS)
    scale = beside.scale if beside else scale or _latent_scale(dataset, config)
    return Stream(shards, config, seed, tokenizer, dataset.silence, own_rows, scale, lanes)


def _allow_open_files(shards: int) -> None:
    """Raises this process's soft limit of open files if that many shards would exceed it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if shards + OTHER_FILES > soft != resource.RLIM_INFINITY:
        if hard != resource.RLIM_INFINITY and shards + OTHER_FILES > hard:
            raise ValueError(
                f"{shards} shards are open at once, but this process may open only {hard} files: lower "
                "--data.interleave, or raise `ulimit -n`"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (shards + OTHER_FILES, hard))


def _latent_scale(dataset: Dataset, config: DataConfig) -> LatentScale:
    try:
        return LatentScale.measured(config.latent_scale, dataset.info.latent_mean, dataset.info.latent_std)
    except ValueError as error:
        raise ValueError(f"{dataset.pin['data']}: {error}: `data prepare` writes them to dataset.json") from None
