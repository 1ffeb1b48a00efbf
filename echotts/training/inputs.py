"""Inputs of a run: the stream of training batches, held-out batches, and the facts passed on to exports."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from echotts.checkpoint.facts import Facts
from echotts.config import Config
from echotts.data.remote.dataset import Dataset, from_pin, open_dataset
from echotts.data.remote.retry import RetryPolicy
from echotts.data.stream.batch import Batch
from echotts.data.stream.open import open_stream
from echotts.data.stream.stream import Stream
from echotts.latents import FACT, LatentScale
from echotts.multihost import messages, runtime
from echotts.rundir.layout import DATA_PINS
from echotts.rundir.location import read_whole, run_path, write_whole
from echotts.strict_json import load_json
from echotts.text.tokens import BYTES, SentencePieceTokenizer, Tokenizer, tokenizer_to_json

LOGGER = logging.getLogger(__name__)

LISTING_DEADLINES = 2  # total time limit for process 0; each of its requests has one deadline

MAX_PINS_BYTES = 1 << 30  # enough for millions of shards

HELDOUT_SEED = 0x5EED  # independent of the run's seed, so that all runs are evaluated on the same batches


@dataclass(frozen=True)
class Inputs:
    """An opened dataset. `heldout` reads this process's rows of the held-out batches; None without held-out data.

    `pins` are the lists of shards, JSON-serialisable, which are stored in the run directory.
    """

    stream: Stream
    heldout: Callable[[], list[Batch]] | None
    facts: Facts
    pins: dict[str, Any]
    first_voice: Callable[[], np.ndarray]  # (m, c) speech of the first training samples, in the model's scale


def open_inputs(config: Config, own_rows: Sequence[int] | None = None, scale: LatentScale | None = None) -> Inputs:
    """Opens `data.data` and `data.heldout`, from the lists stored in the run directory if there are any.

    `own_rows` are the numbers of this process's rows in the global batch, None means all. `scale` is the latent scale
    of frozen weights; None: that of the data. ValueError if the latents have other channels than the model, or the
    cache is too small for the shards.
    """
    tokenizer = open_tokenizer(config.data.tokenizer)
    if tokenizer.vocabulary > config.model.vocabulary:
        raise ValueError(
            f"the {tokenizer.kind} tokenizer has {tokenizer.vocabulary} ids, "
            f"model.vocabulary is {config.model.vocabulary}: make it at least as large"
        )
    datasets = _open_shared(config)
    dataset, held = datasets["data"], datasets.get("heldout")
    stream = open_stream(dataset, config.data, tokenizer, config.run.seed, own_rows, scale=scale)

    def heldout() -> list[Batch]:
        assert held is not None
        with open_stream(held, config.data, tokenizer, HELDOUT_SEED, own_rows, beside=stream) as reading:
            return [reading.next()[0] for _ in range(config.run.eval_batches)]

    def first_voice() -> np.ndarray:
        with open_stream(dataset, config.data, tokenizer, config.run.seed, beside=stream) as reading:
            batch = reading.next()[0]
        speech = batch.latent[batch.latent_mask]
        return np.resize(speech, (config.data.reference_frames, speech.shape[1]))

    return Inputs(
        first_voice=first_voice,
        stream=stream,
        heldout=heldout if held else None,
        facts=data_facts(dataset, config, tokenizer, stream.scale),
        pins={name: opened.pin for name, opened in datasets.items()},
    )


def open_tokenizer(spec: str) -> Tokenizer:
    """A tokenizer of bytes, or a SentencePiece model from a file. FileNotFoundError, or ValueError if it is invalid."""
    if spec in BYTES:
        return BYTES[spec]()
    path = Path(spec).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer {spec}: no such file; give {', '.join(BYTES)} or a SentencePiece .model")
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"tokenizer {spec}: {error}") from error


def data_facts(dataset: Dataset, config: Config, tokenizer: Tokenizer, scale: LatentScale) -> Facts:
    """Facts about the data that inference needs: codec, tokenizer, one frame of silence, latent scale."""
    info = dataset.info
    silence = np.median(dataset.silence, axis=0, keepdims=True)  # frames at the edges of a recording are not silent
    fields = {
        "codec": {
            "id": info.codec_id or config.run.codec or None,
            "weights_hash": info.weights_hash,
            "sample_rate": info.sample_rate,
            "hop": info.hop_length,
            "channels": info.channels,
        },
        "tokenizer": tokenizer_to_json(tokenizer),
        "silence": silence.tolist(),
        FACT: scale.to_json(),
    }
    return Facts.from_dict(fields, config.data.data)


def store_pins(config: Config, inputs: Inputs) -> None:
    """Stores the lists of shards in the run directory, so that a resumed run opens the same ones."""
    if runtime.is_primary() and _stored_pins(config) != inputs.pins:
        write_whole(run_path(config.run.run_dir) / DATA_PINS, json.dumps(inputs.pins) + "\n")


def _stored_pins(config: Config) -> dict[str, Any]:
    """The lists stored in the run directory; ValueError if the file is damaged."""
    if not config.run.run_dir:
        return {}
    path = run_path(config.run.run_dir) / DATA_PINS
    text = read_whole(path)
    if text is None:
        return {}
    try:
        return load_json(text, str(path), dict[str, Any], max_bytes=MAX_PINS_BYTES)
    except ValueError:
        raise ValueError(f"{path}: damaged: delete it to list the shards of {config.data.data} again") from None


def _open_shared(config: Config) -> dict[str, Dataset]:
    """Opens the datasets in one process; the others get the lists from it and send no requests."""
    if jax.process_count() == 1:
        return _open_all(config)
    pins = messages.agree_on(
        "inputs",
        lambda: {name: opened.pin for name, opened in _open_all(config).items()},
        f"list the shards of {config.data.data}",
        LISTING_DEADLINES * config.data.fetch_deadline_s,
    )
    return {name: from_pin(pin) for name, pin in pins.items()}


def _open_all(config: Config) -> dict[str, Dataset]:
    """Opens `data` and, if set, `heldout`, from the run's stored lists if these belong to the same arguments."""
    arguments = {"data": config.data.data, "heldout": config.data.heldout}
    stored = _stored_pins(config)
    policy = RetryPolicy(deadline_s=config.data.fetch_deadline_s)
    opened = {}
    for name, argument in arguments.items():
        if argument is None:
            continue
        pin = stored.get(name)
        if pin is not None and pin["data"] != argument:
            LOGGER.warning("data.%s was %s: listing the shards of %s", name, pin["data"], argument)
            pin = None
        opened[name] = open_dataset(argument, pin, policy, config.run.accept_changed_data)
        channels = opened[name].info.channels
        if channels != config.model.latent_channels:
            raise ValueError(
                f"{argument}: latents of {channels} channels, but the model takes {config.model.latent_channels}: "
                f"set --model.latent_channels {channels}, or prepare the data with another codec"
            )
    return opened
