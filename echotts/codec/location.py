"""Resolves the name of a codec. Imports nothing heavy, so a wrong name is reported immediately."""

import re
from pathlib import Path

from echotts.files import ASSETS

BUILT_IN = {name: ASSETS / "codec" / f"{name}.safetensors" for name in ("demo", "speech")}
HUB_ID = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def locate_codec(spec: str | Path) -> Path | tuple[str, str | None]:
    """The file or folder at `spec`, else (repository, revision) on the Hub. FileNotFoundError if it is neither."""
    if spec in BUILT_IN:
        return BUILT_IN[str(spec)]
    path = Path(spec).expanduser()
    if path.exists():
        return path
    match = HUB_ID.fullmatch(str(spec))
    if not match or path.suffix in (".pth", ".pt", ".safetensors"):
        raise FileNotFoundError(
            f"codec {spec}: no such file: give a .pth, a .safetensors, a folder, a Hub id or 'speech'"
        )
    return match[1], match[2]
