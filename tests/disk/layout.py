"""Run directories, shards, logs and a Hub cache on disk, created without jax; and settings for them."""

import json
import os
import time
from pathlib import Path

from echotts.disk.settings import Limits, Root, Settings

HOUR = 3600.0
ROOMY = {"min_free_gib": 0.0, "min_free_inodes": 0}


def write(path: Path, size: int = 1000, *, age_h: float = 0.0, content: bytes | None = None) -> Path:
    """A file of so many bytes, last written and read so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size) if content is None else content)
    return aged(path, age_h)


def aged(path: Path, age_h: float) -> Path:
    """Sets when a file or folder was last written and read."""
    for each in [*path.rglob("*"), path] if path.is_dir() else [path]:
        then = time.time() - age_h * HOUR
        os.utime(each, (then, then), follow_symlinks=False)
    return path


def checkpoint(run: Path, step: int, size: int = 3000, *, age_h: float = 10.0, name: str | None = None) -> Path:
    """A complete checkpoint: the commit marker is written last, in a folder that is then renamed, as by Orbax."""
    final = run / "checkpoints" / (name or f"step_{step:08d}")
    unfinished = final.with_name(f"{final.name}.orbax-checkpoint-tmp")
    for part in ("params", "ema", "opt_state"):
        write(unfinished / part / "d" / "data", size // 3)
        for file in ("_METADATA", "manifest.ocdbt"):
            write(unfinished / part / file, content=b"x" * 20)
    write(unfinished / "meta" / "metadata", content=json.dumps({"step": step, "format": 1}).encode())
    write(unfinished / "commit_success.txt", content=b"committed")
    aged(unfinished, age_h)
    return unfinished.rename(final)


def run_dir(path: Path, *steps: int, keep_last: int = 3, keep_every: int = 0) -> Path:
    """A run directory with its configuration and these checkpoints."""
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    said = {"preset": "demo", "run": {"keep_last": keep_last, "keep_every": keep_every}}
    (path / "config.json").write_text(json.dumps(said))
    for step in steps:
        checkpoint(path, step, age_h=1000 - step)
    return path


def steps(run: Path) -> list[int]:
    """The steps whose folders are there."""
    return sorted(int(path.name.split("_")[1]) for path in (run / "checkpoints").glob("step_????????"))


def hub_revision(cache: Path, repo: str, commit: str, files: dict[str, bytes], *, age_h: float, ref: str = "") -> Path:
    """A downloaded revision, as huggingface_hub lays it out: snapshots of links to blobs."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        blob = write(folder / "blobs" / f"{name}-{commit}", content=content, age_h=age_h)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    if ref:
        write(folder / "refs" / ref, content=commit.encode())
    aged(snapshot, age_h)
    return snapshot


def settings(*roots: Root, **limits) -> Settings:
    """Settings of these roots that always clean, as far as they may: nothing is ever empty enough."""
    values = {"start": 1e-9, "stop": 1e-9, **ROOMY, **limits}
    return Settings(limits=Limits(**values), roots=roots)
