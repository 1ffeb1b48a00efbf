"""What a run reads: the stream of training batches, held-out batches, and the facts that an export passes on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from echotts.config import Config
from echotts.data.batch import Batch
from echotts.data.dataset import Dataset, open_dataset
from echotts.data.stream import Stream
from echotts.text import ByteTokenizer, SentencePieceTokenizer, Tokenizer, tokenizer_to_json

HELDOUT_SEED = 0x5EED  # not the run's: runs with different seeds are measured on the same batches


@dataclass(frozen=True)
class Inputs:
    """An opened data set. `heldout` reads this process's rows of the held-out batches, or is None without them."""

    stream: Stream
    heldout: Callable[[], list[Batch]] | None
    facts: dict[str, Any]


def open_inputs(config: Config) -> Inputs:
    """Opens `data.data` and `data.heldout`. ValueError where the latents are not of the model's channels."""
    dataset = _open(config, config.data.data)
    tokenizer = open_tokenizer(config.data.tokenizer)
    if tokenizer.vocabulary > config.model.vocabulary:
        raise ValueError(
            f"the {tokenizer.kind} tokenizer has {tokenizer.vocabulary} ids, "
            f"model.vocabulary is {config.model.vocabulary}: make it at least as large"
        )

    def heldout() -> list[Batch]:
        assert config.data.heldout is not None
        held = _open(config, config.data.heldout)
        with _stream(held, config, tokenizer, HELDOUT_SEED) as stream:
            return [stream.next()[0] for _ in range(config.run.eval_batches)]

    return Inputs(
        stream=_stream(dataset, config, tokenizer, config.run.seed),
        heldout=heldout if config.data.heldout else None,
        facts=facts(dataset, config, tokenizer),
    )


def open_tokenizer(spec: str) -> Tokenizer:
    """Bytes, or the SentencePiece model in a file. FileNotFoundError, or ValueError where it is none."""
    if spec == ByteTokenizer.kind:
        return ByteTokenizer()
    path = Path(spec).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer {spec}: no such file; give {ByteTokenizer.kind} or a SentencePiece .model")
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"tokenizer {spec}: {error}") from error


def facts(dataset: Dataset, config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """What inference must know of the data, JSON-ready: the codec it needs, the tokenizer, one frame of silence."""
    info = dataset.info
    codec = {
        "id": info.codec_id or config.run.codec or None,
        "weights_hash": info.weights_hash,
        "sample_rate": info.sample_rate,
        "hop": info.hop_length,
        "channels": info.channels,
    }
    silence = np.median(dataset.silence, axis=0, keepdims=True)  # (1, c): the edges of a recording are no silence
    return {"codec": codec, "tokenizer": tokenizer_to_json(tokenizer), "silence": silence.tolist()}


def _open(config: Config, spec: str) -> Dataset:
    dataset = open_dataset(spec)
    if dataset.info.channels != config.model.latent_channels:
        raise ValueError(
            f"{spec}: latents of {dataset.info.channels} channels, the model takes {config.model.latent_channels}: "
            f"set --model.latent_channels {dataset.info.channels}, or prepare the data with another codec"
        )
    return dataset


def _stream(dataset: Dataset, config: Config, tokenizer: Tokenizer, seed: int) -> Stream:
    return Stream(
        dataset.files,
        config.data,
        seed,
        tokenizer,
        dataset.silence,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        lengths=dataset.info.lengths,
    )
