"""Which configuration keys may change when a run is resumed."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from echotts.config import Config
from echotts.rundir.location import RunPath

LOGGER = logging.getLogger(__name__)

# Keys that may change when a run resumes; all others must match. `run.seed` determines every random draw.
MAY_DIFFER = (
    "run.*",
    "optim.steps",
    "data.data",
    "data.heldout",
    "data.cache_dir",
    "data.cache_gb",
    "data.fetch_deadline_s",
    "data.interleave",  # compared by the stream: None is compatible with any
    "model.remat",
    "model.attention",
    "steps",  # from here on: keys of a codec training
    "optim.decay_share",
)
MUST_AGREE = ("run.seed",)


class ConfigDiffersError(ValueError):
    """A run is resumed with an incompatible configuration."""


def differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """`section.key: saved value -> given value` for each key that differs."""
    before, now = _flat(saved), _flat(given)
    missing = "(absent)"
    return [
        f"{key}: {before.get(key, missing)!r} -> {now.get(key, missing)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, missing) != now.get(key, missing)
    ]


def check_config(saved: Mapping[str, Any], given: Mapping[str, Any], folder: RunPath) -> None:
    """Raises ConfigDiffersError naming each difference that is not allowed on resuming; logs the allowed ones."""
    lines = differences(_completed(saved, given), given)
    refused = [line for line in lines if not _may_differ(line.split(":", 1)[0])]
    if refused:
        raise ConfigDiffersError(
            f"{folder}: made with another configuration: {'; '.join(refused)}; "
            "use that configuration, or another --run_dir (with --init_from to start from its weights)"
        )
    for line in lines:
        if not line.startswith("run."):
            LOGGER.warning("resuming with a changed %s", line)


def _may_differ(key: str) -> bool:
    if key in MUST_AGREE:
        return False
    return any(key == known or (known.endswith("*") and key.startswith(known[:-1])) for known in MAY_DIFFER)


def _completed(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The saved configuration with keys added since then, set to their defaults, which mean the former behaviour.

    Keys that `given` does not have are not added: a codec training has other sections than `Config`.
    """
    known = {field.name: field.type for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)}
    completed: dict[str, Any] = dict(saved)
    for name, section in known.items():
        fields = {key.name: key.default for key in dataclasses.fields(section) if key.default is not MISSING}
        defaults = {key: value for key, value in fields.items() if key in given.get(name, {})}
        if defaults:
            completed[name] = defaults | dict(saved.get(name, {}))
    return completed


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections flattened to dotted keys, after a round trip through JSON so that tuples and lists compare equal."""
    flat: dict[str, Any] = {}

    def visit(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                visit(value, f"{path}.{name}" if path else name)
        else:
            flat[path] = node

    visit(json.loads(json.dumps(config)), "")
    return flat
