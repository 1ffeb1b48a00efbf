"""Datasets: their shards, dataset.json, and the silence that pads latents.

Only the shards are required. Whatever else is missing is computed or defaulted, with a log line. `Dataset.pin` is the
whole as JSON: a run stores it, shares it among its processes, and reopens the same data from it when it resumes.
"""

import base64
import dataclasses
import io
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from echotts.data.format.info import INFO_NAME, SILENCE_NAME, DatasetInfo
from echotts.data.format.shards import ShardReader, read_shard
from echotts.data.remote.fetch import Fetcher
from echotts.data.remote.listing import Listing, check_contents, check_pins, list_part
from echotts.data.remote.retry import RetryPolicy
from echotts.data.remote.shard_file import ShardFile
from echotts.data.remote.sources import split_parts
from echotts.data.remote.store import Source
from echotts.rundir.rejections import Rejected, Rejections

logger = logging.getLogger(__name__)

PIN_VERSION = 1
MAX_SMALL_BYTES = 256 << 20  # limit of a remote dataset.json or silence.npy
MAX_FOLDERS = 16
HEADS, HEAD_BYTES = 4, 16 << 20  # number and bytes of shard heads read if a remote dataset has no dataset.json


@dataclass(frozen=True)
class Dataset:
    """Shards in canonical order, their metadata, silence (k, c) float32 for padding, and everything as JSON."""

    sources: tuple[Source, ...]
    info: DatasetInfo
    silence: np.ndarray
    pin: dict[str, Any]

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards as local files. ValueError if some are remote."""
        files = [file for source in self.sources for file in source.files]
        for file in files:
            if file.remote:
                raise ValueError(f"{file.url}: this command reads local files: download the shards and give the folder")
        return tuple(Path(file.url) for file in files)

    @property
    def remote(self) -> bool:
        return any(file.remote for source in self.sources for file in source.files)


@dataclass(frozen=True)
class _Listed:
    """A listing and the metadata of its folders; `info` is None if not all of them have a dataset.json."""

    listing: Listing
    info: DatasetInfo | None
    lengths_whole: bool
    silence: np.ndarray | None


def open_dataset(
    argument: str, pin: Mapping[str, Any] | None = None, policy: RetryPolicy | None = None, accept_changed: bool = False
) -> Dataset:
    """Opens the dataset that `argument` names (see sources.py), as it is now or as recorded in a `pin`.

    With a pin nothing is listed; changes since then are logged, and rewritten local shards raise ValueError unless
    `accept_changed`. FileNotFoundError if nothing is found; ValueError if folders disagree about the codec, or no shard
    has a valid latent to tell the channels; Unavailable if a server does not answer.
    """
    fetcher = Fetcher(policy or RetryPolicy())
    if pin is not None:
        listed = [_from_pin(fields, fetcher, accept_changed) for fields in _checked(pin)["sources"]]
        for line in check_pins([one.listing for one in listed], fetcher.retries):
            logger.warning("%s", line)
    else:
        listed = [_look_beside(list_part(part, fetcher.retries), fetcher) for part in split_parts(argument)]
    return _assemble(argument, listed)


def from_pin(pin: Mapping[str, Any]) -> Dataset:
    """The dataset of a pin, without checking for changes: for the other processes of a run."""
    fetcher = Fetcher(RetryPolicy())
    return _assemble(pin["data"], [_from_pin(fields, fetcher) for fields in _checked(pin)["sources"]])


def _assemble(argument: str, listed: Sequence[_Listed]) -> Dataset:
    first = listed[0].listing
    known = [one.info for one in listed if one.info is not None]
    info = _join(known, complete=len(known) == len(listed))
    if info is None:
        info = DatasetInfo(channels=_channels_of([Path(file.url) for file in first.files]))
    sources = [
        Source(one.listing.files, one.listing.weight or 1.0, one.info.lengths if one.info else (), one.lengths_whole)
        for one in listed
    ]
    if first.weight is None and len(sources) > 1:  # not a mixture: join the lists; each shard occurs once per epoch
        lengths = sum((tuple(source.lengths) for source in sources), ())
        sources = [
            Source(
                files=sum((source.files for source in sources), ()),
                lengths=lengths if all(source.lengths for source in sources) else (),
                lengths_whole=all(source.lengths_whole for source in sources),
            )
        ]
    silence = next((one.silence for one in listed if one.silence is not None), None)
    if silence is None:
        logger.warning(
            "%s: no %s: latents are padded with zeros, which do not decode to silence", first.spec, SILENCE_NAME
        )
        silence = np.zeros((1, info.channels), np.float32)
    elif silence.shape[1] != info.channels:
        raise ValueError(
            f"{first.spec}: {SILENCE_NAME} has {silence.shape[1]} channels, expected floats (frames, {info.channels})"
        )
    pin = {"version": PIN_VERSION, "data": argument, "sources": [_to_pin(one) for one in listed]}
    return Dataset(tuple(sources), info, silence, json.loads(json.dumps(pin)))  # normalised as if it had been stored


def _to_pin(one: _Listed) -> dict[str, Any]:
    """For local folders only the list is stored: their metadata are read again."""
    fields = {"listing": one.listing.to_json(), "info": None, "silence": None, "lengths_whole": one.lengths_whole}
    if one.listing.remote and one.info is not None:
        fields["info"] = dataclasses.replace(one.info, shards=()).to_json()
    if one.listing.remote and one.silence is not None:
        with io.BytesIO() as file:
            np.save(file, one.silence)
            fields["silence"] = base64.b64encode(file.getvalue()).decode()
    return fields


def _from_pin(fields: Mapping[str, Any], fetcher: Fetcher, accept_changed: bool | None = None) -> _Listed:
    """With `accept_changed` None, files are not checked for changes."""
    listing = Listing.from_json(fields["listing"])
    if accept_changed is not None:
        listing = check_contents(listing, accept_changed)
    if not listing.remote:
        return _look_beside(listing, fetcher)
    info = DatasetInfo.from_json(fields["info"], listing.spec) if fields["info"] else None
    silence = parse_silence(base64.b64decode(fields["silence"]), listing.spec) if fields["silence"] else None
    return _Listed(listing, info, fields["lengths_whole"], silence)


def _checked(pin: Mapping[str, Any]) -> Mapping[str, Any]:
    if pin.get("version") != PIN_VERSION:
        raise ValueError(f"the stored list of shards has version {pin.get('version')!r}, expected {PIN_VERSION}")
    return pin


def _look_beside(listing: Listing, fetcher: Fetcher) -> _Listed:
    """Reads the metadata files beside the shards; for remote shards without a dataset.json, the heads of a few."""
    folders = sorted({file.folder if listing.remote else str(Path(file.url).parent) for file in listing.files})
    if listing.remote and len(folders) > MAX_FOLDERS:
        folders = folders[:MAX_FOLDERS]
    infos: dict[str, DatasetInfo] = {}
    silence = None
    for folder in folders:
        if payload := _beside(listing, folder, INFO_NAME, fetcher):
            infos[folder] = DatasetInfo.parse(payload, f"{folder}/{INFO_NAME}")
        if silence is None and (payload := _beside(listing, folder, SILENCE_NAME, fetcher)):
            silence = parse_silence(payload, f"{folder}/{SILENCE_NAME}")
    listing, used = _with_info(listing, infos)
    info = _join(used, complete=len(infos) == len(folders))
    if len(infos) < len(folders):
        lacking = next(folder for folder in folders if folder not in infos)
        logger.info("%s: no %s: lengths and channels are read from the shards", lacking, INFO_NAME)
    whole = True
    if listing.remote and (info is None or not info.lengths):
        seen = _look_at_heads(listing.files, fetcher)
        info = dataclasses.replace(info, lengths=seen.lengths) if info else seen
        whole = False
    return _Listed(listing, info, whole, silence)


def _beside(listing: Listing, folder: str, name: str, fetcher: Fetcher) -> bytes | None:
    """A small file in a folder of shards; None if it does not exist."""
    if not listing.remote:
        path = Path(folder) / name
        return path.read_bytes() if path.is_file() else None
    url = f"{folder}/{name}"
    if listing.beside is not None and url not in listing.beside:
        return None
    return fetcher.read(url, MAX_SMALL_BYTES)


def parse_silence(payload: bytes, path: str) -> Float[np.ndarray, "k c"]:
    """The latent in a silence.npy as float32. ValueError if it is invalid."""
    try:
        silence = np.load(io.BytesIO(payload), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a plain npy file ({error})") from None
    if silence.ndim != 2 or len(silence) < 1 or silence.shape[1] < 1 or silence.dtype.kind != "f":
        raise ValueError(f"{path}: {silence.dtype} {silence.shape}, expected floats (frames, channels)")
    if not np.isfinite(silence).all():
        raise ValueError(f"{path}: has values that are not finite")
    return silence.astype(np.float32)


def _with_info(listing: Listing, infos: Mapping[str, DatasetInfo]) -> tuple[Listing, list[DatasetInfo]]:
    """Adds sizes and hashes from dataset.json to the listing; also returns the metadata of the shards in use."""
    files, used, changed = [], {folder: [] for folder in infos}, []
    by_name = {folder: {shard.name: shard for shard in info.shards} for folder, info in infos.items()}
    for file in listing.files:
        folder = file.folder if file.remote else str(Path(file.url).parent)
        shard = by_name.get(folder, {}).get(file.name)
        if shard is not None:
            used[folder].append(shard)
            size = file.bytes if file.remote else Path(file.url).stat().st_size
            changed += [file.url] if size not in (None, shard.bytes) else []
            if file.remote and file.checksum is None:
                file = ShardFile(url=file.url, bytes=shard.bytes, checksum=f"sha256:{shard.sha256}")
            elif not file.remote and size == shard.bytes:
                file = dataclasses.replace(file, checksum=f"sha256:{shard.sha256}")
        files.append(file)
    if changed:
        logger.warning("%d shards differ in size from %s, the first is %s", len(changed), INFO_NAME, changed[0])
    of_used = [
        dataclasses.replace(
            info, shards=tuple(used[folder]), hours=info.hours if len(used[folder]) == len(info.shards) else None
        )
        for folder, info in infos.items()
    ]
    return dataclasses.replace(listing, files=tuple(files)), of_used


def _join(infos: Sequence[DatasetInfo], complete: bool) -> DatasetInfo | None:
    """The metadata of several folders as one. The length histogram is kept only if it covers all of them."""
    if not infos:
        return None
    first = infos[0]
    for other in infos[1:]:
        if (first.channels, first.weights_hash) != (other.channels, other.weights_hash):
            raise ValueError(
                f"the folders have latents of different codecs: {first.codec_id} with {first.channels} channels, "
                f"{other.codec_id} with {other.channels}"
            )
    if len(infos) == 1 and complete:
        return first
    hours = [info.hours for info in infos]
    mean, std = _pooled(infos) if complete else ((), ())
    return dataclasses.replace(
        first,
        latent_mean=mean,
        latent_std=std,
        hours=sum(hour for hour in hours if hour is not None) if complete and None not in hours else None,
        lengths=sum((info.lengths for info in infos), ()) if complete and all(info.lengths for info in infos) else (),
        shards=sum((info.shards for info in infos), ()),
    )


def _pooled(infos: Sequence[DatasetInfo]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel over all folders, weighted by hours; empty if a folder lacks any."""
    if any(not info.hours or not info.latent_mean or not info.latent_std for info in infos):
        return (), ()
    hours = np.array([info.hours for info in infos])
    means, stds = (np.array([getattr(info, name) for info in infos]) for name in ("latent_mean", "latent_std"))
    mean = np.average(means, axis=0, weights=hours)
    square = np.average(np.square(stds) + np.square(means), axis=0, weights=hours)
    std = np.sqrt(np.maximum(square - np.square(mean), 0.0))
    return tuple(mean.tolist()), tuple(std.tolist())


def _channels_of(files: Sequence[Path]) -> int:
    rejections = Rejections()
    for file in files[:16]:
        for sample in read_shard(file, None, rejections):
            return sample.latent.shape[1]
    raise ValueError(f"{files[0]}: no valid latent in this shard or the next ones: {rejections.summary()}")


def _look_at_heads(files: Sequence[ShardFile], fetcher: Fetcher) -> DatasetInfo:
    """Channels and lengths from the heads of a few shards, without downloading a whole one."""
    lengths: Counter[tuple[int, int]] = Counter()
    channels, cause = None, "they are empty"
    for file in dict.fromkeys(files[number * len(files) // HEADS] for number in range(HEADS)):
        with tempfile.NamedTemporaryFile(suffix=".tar") as head:
            head.write(fetcher.head(file.url, HEAD_BYTES))
            head.flush()
            with ShardReader(head.name, channels, file.name) as reader:
                for place in range(len(reader)):
                    try:
                        sample = reader.sample(place)
                    except Rejected as fault:
                        cause = str(fault)
                        continue
                    channels = reader.channels
                    lengths[len(sample.latent), len(sample.text.encode())] += 1
                cause = str(reader.tar.faults[0].detail) if reader.tar.faults and not len(reader) else cause
    if channels is None:
        raise ValueError(f"{files[0].url}: no valid latent at the beginning of this or other shards: {cause}")
    logger.info(
        "%s: no %s: lengths are estimated from %d samples in the heads of shards",
        files[0].url,
        INFO_NAME,
        lengths.total(),
    )
    return DatasetInfo(channels=channels, lengths=tuple((*cell, count) for cell, count in sorted(lengths.items())))
