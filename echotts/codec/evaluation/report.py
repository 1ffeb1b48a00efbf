"""Writes the report folder of a codec evaluation: results.jsonl, summary.json, audio files and an HTML page."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from echotts.audio import write_audio
from echotts.codec.evaluation.round_trips import RoundTrip
from echotts.files import write_json, write_whole
from echotts.spectrogram import draw_spectrogram

ROWS = {  # metric -> title in the table, number format
    "clips": ("clips", ".0f"),
    "seconds": ("seconds", ".1f"),
    "mel_distance": ("mel distance (log10; 0 is equal)", ".4f"),
    "stft_distance": ("STFT distance (log10)", ".4f"),
    "spectral_convergence": ("spectral convergence (1 is silence)", ".4f"),
    "si_sdr_db": ("SI-SDR, dB", ".2f"),
    "stoi": ("STOI (1 is intelligible)", ".3f"),
    "level_db": ("level, dB", "+.2f"),
    "word_errors": ("word errors", ".1%"),
    "word_errors_of_recordings": ("word errors of the recordings", ".1%"),
    "similarity": ("speaker similarity", ".3f"),
    "latent_mean": ("latent mean", ".3f"),
    "latent_std": ("latent std", ".3f"),
    "posterior_std": ("posterior std", ".3f"),
    "kl": ("KL divergence, summed over channels", ".1f"),
    "active_channels": ("active channels", ".0f"),
    "bits_per_s": ("bits per second", ",.0f"),
    "codes_used_share": ("codes used", ".1%"),
    "encode_per_s": ("seconds encoded per second", ".1f"),
    "decode_per_s": ("seconds decoded per second", ".1f"),
    "peak_memory_bytes": ("peak memory, bytes", ",.0f"),
}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:90rem;padding:0 1rem}
table{border-collapse:collapse}th,td{padding:.3rem .7rem;border-bottom:1px solid #8884;text-align:left}
td+td,th+th{text-align:right}audio{width:15rem;display:block}img{width:15rem;height:6rem;display:block}
figure{display:inline-block;margin:.3rem}@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}}"""

Heard = tuple[RoundTrip, Float[np.ndarray, " _n"], Float[np.ndarray, " _n"], int]
"""(round trip, input, output, sample rate) of a clip that the page plays."""
Summaries = Mapping[tuple[str, str], Mapping[str, float]]
"""(codec, condition) -> metrics."""


def format_table(summaries: Summaries) -> str:
    """A text table of metrics with a column per codec and condition."""
    rows = _rows(summaries)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


def write_report(folder: Path, summaries: Summaries, results: Sequence[RoundTrip], heard: Sequence[Heard]) -> None:
    """Writes the report. `heard` are the clips that the page plays; results.jsonl has all results."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(one.to_dict()) + "\n" for one in results)
    write_whole(folder / "results.jsonl", lines)
    rows = [{"codec": codec, "condition": condition, **figures} for (codec, condition), figures in summaries.items()]
    write_json(folder / "summary.json", rows)
    clips: dict[tuple[str, str], list[str]] = {}
    for number, (one, before, after, rate) in enumerate(heard):
        figures = clips.setdefault((one.clip, one.condition), [])
        if not figures:
            figures.append(_figure(folder, f"{number:03d}_in.flac", f"in, {one.condition}", before, rate))
        about = f"{one.codec}: mel {one.mel_distance:.3f}"
        figures.append(_figure(folder, f"{number:03d}_out.flac", about, after, rate))
    table = "".join(
        "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>"
        for kind, row in zip(["th"] + ["td"] * len(ROWS), _rows(summaries), strict=False)
    )
    sounds = "".join(f"<h3>{html.escape(clip)}</h3>{''.join(parts)}" for (clip, _), parts in clips.items())
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Codecs</title><style>{STYLE}</style>"
    write_whole(folder / "index.html", f"{page}<h1>Codecs</h1><table>{table}</table><h2>Clips</h2>{sounds}</html>\n")


def _rows(summaries: Summaries) -> list[list[str]]:
    head = ["", *(f"{codec}, {condition}" for codec, condition in summaries)]
    rows = [head]
    for name, (title, form) in ROWS.items():
        if any(name in figures for figures in summaries.values()):
            rows.append([title, *(format(f[name], form) if name in f else "" for f in summaries.values())])
    return rows


def _figure(folder: Path, name: str, title: str, samples: np.ndarray, rate: int) -> str:
    write_audio(folder / name, samples, rate, "none" if np.abs(samples).max(initial=0) < 1 else "clip")
    picture = base64.b64encode(draw_spectrogram(samples, rate)).decode()
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><img alt="" src="data:image/png;base64,{picture}">'
        f'<audio controls preload="none" src="{name}"></audio></figure>'
    )
