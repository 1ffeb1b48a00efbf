"""The unit of a metric by its name: the last word of `group/name_unit`."""

UNITS = {
    "s": "s",
    "share": "share",
    "bytes": "bytes",
    "hours": "h",
    "per_s": "per s",
    "steps": "steps",
    "samples": "samples",
    "frames": "frames",
    "count": "",
    "seen": "samples",
}


def unit_of(name: str) -> str:
    """The unit's symbol, empty for a plain number."""
    if name.endswith("_per_s"):
        return UNITS["per_s"]
    return UNITS.get(name.rpartition("/")[2].rpartition("_")[2], "")
