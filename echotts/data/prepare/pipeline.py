"""Prepares a dataset of latent shards from recordings, in two passes that can be interrupted at any time.

Pass 1 reads, resamples, downmixes, normalises to -16 LUFS and encodes the clips, PART_CLIPS at a time; a part is a
small shard in the hidden folder `.prepare`, with a list of accepted and rejected recordings beside it. Pass 2
distributes all accepted clips, shuffled, over the final shards and gives each a reference: another clip of the same
speaker. Every file is written atomically and is a function of the plan (source list, codec, settings), so a restarted
run skips what exists and ends with the same bytes as an uninterrupted one. dataset.json is written last.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from echotts.audio import SILENT_PEAK, loudness_normalise
from echotts.data.format.info import INFO_NAME, SILENCE_NAME, DatasetInfo
from echotts.data.format.shards import Sample, ShardWriter
from echotts.data.prepare.assemble import Clip, choose_heldout, choose_references, summarise_shards, write_shards
from echotts.data.prepare.encoding import check_round_trip, encode_clips
from echotts.data.prepare.plan import (
    HELDOUT_NAME,
    REPORT_NAME,
    WORK_NAME,
    Settings,
    Summary,
    alone,
    begin,
    finished,
    plan_of,
    read_report,
)
from echotts.data.prepare.recordings import Recording, RecordingReader, list_recordings, plain
from echotts.files import atomic_write, write_json, write_whole
from echotts.latents import LatentCodec
from echotts.rundir.rejections import Rejected

logger = logging.getLogger(__name__)

REJECTED_NAME = "rejected.jsonl"
PART_CLIPS = 64
SILENCE_S = 30
READING_THREADS = min(8, os.cpu_count() or 1)

Loaded = tuple[dict[str, Any], np.ndarray] | Rejected  # metadata and audio of a recording, or why it was rejected
OnProgress = Callable[[str, int, int, int], None]  # (stage, number done, total, rejected so far)


def prepare(
    source: str,
    output: Path,
    codec: LatentCodec,
    settings: Settings | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Summary:
    """Makes the dataset `output` from the recordings in `source` (see recordings.py), or resumes making it.

    With `heldout_share` there is a second dataset, `output`/heldout, of texts that do not occur in the first.

    ValueError for an unreadable table, no usable recordings, or an output folder with other contents.
    """
    settings = settings or Settings()
    recordings = list_recordings(source, settings.speaker, settings.language)
    plan = plan_of(recordings, codec, settings)
    work = output / WORK_NAME
    if (output / INFO_NAME).exists():
        summary = finished(output, plan)
        shutil.rmtree(work, ignore_errors=True)
        return summary
    begin(output, plan)
    with alone(work):
        parts = [recordings[first : first + PART_CLIPS] for first in range(0, len(recordings), PART_CLIPS)]
        clips, rejected = _encode_parts(parts, work, codec, settings, on_progress)
        if not clips:
            raise ValueError(f"{source}: none of the {len(recordings)} recordings is usable: {_causes(rejected)}")
        summary = _write_data_sets(output, clips, recordings, codec, settings, plan, rejected, on_progress)
    shutil.rmtree(work)
    return summary


def _encode_parts(
    parts: Sequence[Sequence[Recording]], work: Path, codec: LatentCodec, settings: Settings, on_progress: OnProgress
) -> tuple[list[Clip], list[dict[str, str]]]:
    """Pass 1: accepted clips and rejected recordings of all parts; encodes only missing parts."""
    files = [work / f"part-{number:06d}.tar" for number in range(len(parts))]
    missing = [number for number, tar in enumerate(files) if not tar.exists()]
    total = sum(map(len, parts))
    done, bad = total - sum(len(parts[number]) for number in missing), 0
    on_progress("encoded", done, total, bad)
    with RecordingReader() as reader, ThreadPoolExecutor(READING_THREADS) as pool:
        loaded = _loaded([parts[number] for number in missing], lambda one: _load(reader, one, codec, settings), pool)
        for number, sounds in zip(missing, loaded, strict=True):

            def say(encoded: int, before: int = done, bad: int = bad) -> None:
                on_progress("encoded", before + encoded, total, bad)

            bad += _encode_part(parts[number], sounds, files[number], codec, say, first=not done)
            done += len(parts[number])
            on_progress("encoded", done, total, bad)
    clips: list[Clip] = []
    rejected: list[dict[str, str]] = []
    for tar in files:
        found = read_report(tar.with_suffix(".json"))
        clips += [Clip(key, speaker, tar, place) for place, (key, speaker) in enumerate(found["accepted"])]
        rejected += found["rejected"]
    return clips, rejected


def _loaded(
    parts: Sequence[Sequence[Recording]], load: Callable[[Recording], Loaded], pool: ThreadPoolExecutor
) -> Iterator[list[Loaded]]:
    """Yields the results of `load` for each part; the next part is loaded while the caller processes one."""
    ahead: deque[list[Future[Loaded]]] = deque()
    for part in parts:
        ahead.append([pool.submit(load, recording) for recording in part])
        if len(ahead) > 1:
            yield [future.result() for future in ahead.popleft()]
    for last in ahead:
        yield [future.result() for future in last]


def _encode_part(
    recordings: Sequence[Recording],
    loaded: Sequence[Loaded],
    tar: Path,
    codec: LatentCodec,
    on_encoded: Callable[[int], None],
    first: bool,
) -> int:
    """Writes one part: first its record, then its tar, which marks the part as complete. Returns the rejected count.

    The codec is checked on the `first` part.
    """
    good = [(recording, *item) for recording, item in zip(recordings, loaded, strict=True) if isinstance(item, tuple)]
    bad = [(recording, item) for recording, item in zip(recordings, loaded, strict=True) if isinstance(item, Rejected)]
    sounds = [audio for _, _, audio in good]
    latents = encode_clips(codec, sounds, on_encoded)
    if first and (warning := check_round_trip(codec, sounds, latents)):
        logger.warning("%s", warning)
    samples = []
    for (recording, meta, audio), latent in zip(good, latents, strict=True):
        with np.errstate(over="ignore"):
            half = latent.astype(np.float16)
        if not np.isfinite(half).all():
            bad.append((recording, Rejected("non_finite", "the codec's latent exceeds the range of float16")))
            continue
        seconds = round(len(audio) / codec.sample_rate, 4)
        file = plain(recording.file.name) + ("" if recording.member is None else f"/{recording.member}")
        samples.append(
            Sample(recording.key, half, None, meta["text"], meta["speaker"], meta["language"], seconds, file)
        )
    rejected = [{"source": one.origin, "cause": fault.cause, "detail": plain(fault.detail)} for one, fault in bad]
    accepted = [(sample.key, sample.speaker) for sample in samples]
    write_json(tar.with_suffix(".json"), {"accepted": accepted, "rejected": rejected})
    with ShardWriter(tar, codec.latent_channels) as writer:
        for sample in samples:
            writer.write(sample)
    return len(bad)


def _load(reader: RecordingReader, recording: Recording, codec: LatentCodec, settings: Settings) -> Loaded:
    """Metadata and normalised audio of one recording, or why it was rejected."""
    try:
        meta = recording.checked_meta()
        audio = reader.read(recording, codec.sample_rate, settings.max_s)
    except Rejected as fault:
        return fault
    seconds = len(audio) / codec.sample_rate
    if seconds < settings.min_s:
        return Rejected("too_short", f"{seconds:.2f} s, at least {settings.min_s:g} s are required")
    if np.abs(audio).max() < SILENT_PEAK:
        return Rejected("silent", f"the peak is below {SILENT_PEAK:g} of full scale")
    return meta, loudness_normalise(audio, codec.sample_rate, settings.loudness_lufs)


def _write_data_sets(
    output: Path,
    clips: Sequence[Clip],
    recordings: Sequence[Recording],
    codec: LatentCodec,
    settings: Settings,
    plan: Mapping[str, Any],
    rejected: Sequence[Mapping[str, str]],
    on_progress: OnProgress,
) -> Summary:
    """Pass 2: the held-out dataset if requested, the training dataset, the reports, and its dataset.json last."""
    held: set[str] = set()
    if settings.heldout_share:
        texts = {recording.key: str(recording.meta.get("text")) for recording in recordings}
        held = choose_heldout(clips, texts, settings.heldout_share, settings.seed)
        chosen = [clip for clip in clips if clip.key in held]
        references = choose_references(clips, settings.seed)  # references may be clips that are trained on
        info, _ = _write_shards(output / HELDOUT_NAME, chosen, references, codec, settings, on_progress)
        info.save(output / HELDOUT_NAME / INFO_NAME)
    chosen = [clip for clip in clips if clip.key not in held]
    references = choose_references(chosen, settings.seed)
    info, with_reference = _write_shards(output, chosen, references, codec, settings, on_progress)
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in rejected)
    write_whole(output / REJECTED_NAME, "".join(lines))
    summary = Summary(
        samples=info.samples,
        hours=info.hours or 0.0,
        shards=len(info.shards),
        with_reference=with_reference,
        rejected=dict(Counter(line["cause"] for line in rejected)),
        heldout=len(held),
    )
    write_json(output / REPORT_NAME, {"plan": plan, "summary": dataclasses.asdict(summary)})
    info.save(output / INFO_NAME)
    return summary


def _write_shards(
    folder: Path,
    clips: Sequence[Clip],
    references: Mapping[str, Clip],
    codec: LatentCodec,
    settings: Settings,
    on_progress: OnProgress,
) -> tuple[DatasetInfo, int]:
    """Writes shards and silence.npy of one dataset; returns its dataset.json and the samples with a reference."""
    shards = write_shards(
        clips, references, folder, codec.latent_channels, settings.shard_samples, settings.seed, on_progress
    )
    frames = SILENCE_S * codec.sample_rate // codec.hop_length
    with atomic_write(folder / SILENCE_NAME) as temporary, temporary.open("wb") as file:
        np.save(file, np.asarray(codec.silence_latent(frames)).astype(np.float16), allow_pickle=False)
    return summarise_shards(shards, codec, on_progress)


def _causes(rejected: Sequence[Mapping[str, str]]) -> str:
    counts = Counter(line["cause"] for line in rejected)
    return (
        ", ".join(f"{cause} {count}" for cause, count in counts.most_common())
        + f"; first {rejected[0]['source']}: {rejected[0]['detail']}"
    )
