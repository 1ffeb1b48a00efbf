"""Settings of a launch: flags override the file, which overrides the defaults; validated before the first call."""

from __future__ import annotations

import configparser
import difflib
import re
import shlex
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from launch.errors import UsageError

REPOSITORY = Path(__file__).resolve().parent.parent
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
WATCHDOG = "disk_watchdog.py --config launch/watchdog.toml"
DASHBOARD = "monitor.py --port 8080"
YES, NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")


@dataclass(frozen=True)
class Family:
    """A TPU generation: the unit of the number in its accelerator types, and the image of its machines."""

    cores_a_chip: int  # 2 if the number counts cores
    one_host: int  # the largest slice, in chips, whose chips are all on one host
    runtime: str


FAMILIES = {
    "v4": Family(2, 4, "tpu-ubuntu2204-base"),
    "v5p": Family(2, 4, "v2-alpha-tpuv5"),
    "v5litepod": Family(1, 8, "v2-alpha-tpuv5-lite"),
    "v6e": Family(1, 8, "v2-alpha-tpuv6e"),
}
CHIPS_A_HOST = 4  # of slices that span hosts


@dataclass(frozen=True)
class Slice:
    """The size of an accelerator type."""

    chips: int
    hosts: int
    runtime: str


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class Settings:
    """All settings of the verbs. Each field is a flag, and a key of the file's [launch] section."""

    name: str = _setting("echotts", "name of the TPU and of its queued resource")
    project: str = _setting("", "Google Cloud project; empty: gcloud's default")
    zone: str = _setting("", "such as us-central2-b; empty: gcloud's default")
    accelerator_type: str = _setting("", "such as v4-64, v5litepod-32, v6e-32; needed by up and watch")
    runtime_version: str = _setting("", "image of the machines; empty: the default for the accelerator type")
    spot: bool = _setting(False, "preemptible capacity, for a fraction of the price")
    create_flags: str = _setting("", "more flags of `queued-resources create`, such as --service-account=...")
    ssh_flags: str = _setting("", "more flags of `tpu-vm ssh` and `scp`, such as --internal-ip")
    source: str = _setting(str(REPOSITORY), "git repository whose HEAD is sent")
    dirty: bool = _setting(False, "also send uncommitted and untracked files (never ignored ones)")
    base: str = _setting("echotts", "directory on the workers, below the home directory")
    python: str = _setting(
        "3.11", "Python version on the workers (installed by uv), or the path of an interpreter with all dependencies"
    )
    command: str = _setting("", "command to run on every worker, such as: train_pretrain.py --preset 1.3b ...")
    hf_token_file: str = _setting("", "file with a Hugging Face token; copied as a file, never on a command line")
    watchdog: str = _setting(WATCHDOG, "disk watchdog command, started with the run; the run's --run_dir is added")
    dashboard_command: str = _setting(DASHBOARD, "command that --dashboard starts; the run's --run_dir is added")
    min_free_gb: int = _setting(20, "free disk space in GB that start requires on every worker")
    max_skew_s: int = _setting(30, "largest difference between the workers' clocks, in seconds")
    grace_s: int = _setting(180, "seconds between SIGTERM and SIGKILL")
    wait_minutes: float = _setting(60.0, "minutes that up waits for the machines; 0: do not wait")
    poll_s: float = _setting(30.0, "seconds between checks while waiting and watching")
    lost_s: float = _setting(
        600.0,
        "seconds after which a granted slice that is not listed, or (watch) a worker that does not answer, counts as "
        "lost; six times as long if no worker answers",
    )
    backoff_s: float = _setting(60.0, "watch: seconds before the second retry; doubles up to 30 minutes")
    max_per_day: int = _setting(24, "watch: maximum number of retries within 24 hours")
    settle_s: float = _setting(5.0, "start: seconds after which the process of every worker must still be alive")
    env: tuple[tuple[str, str], ...] = _setting((), "environment variables of the run; the file's [env] section")

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"name {self.name!r}: must be lower-case letters, digits and hyphens, starting with a letter"
            )
        if not self.base or self.base.startswith("~") or ".." in self.base.split("/") or self.base == "/":
            raise UsageError(f"base {self.base!r}: give a directory below the home directory, or an absolute one")
        if not re.fullmatch(r"3\.\d+|/.+", self.python):
            raise UsageError(f"python {self.python!r}: give a version such as 3.11, or the path of an interpreter")
        for key in ("command", "watchdog", "dashboard_command", "create_flags", "ssh_flags"):
            try:
                shlex.split(getattr(self, key))
            except ValueError as error:
                raise UsageError(f"{key}: {error} in {getattr(self, key)!r}") from None
        for key, _ in self.env:
            if not ENV_NAME.fullmatch(key):
                raise UsageError(f"[env] {key!r}: not a name of an environment variable")
        if min(self.grace_s, self.max_per_day, self.max_skew_s) < 1 or min(self.poll_s, self.lost_s) <= 0:
            raise UsageError("grace_s, poll_s, lost_s, max_per_day and max_skew_s must be above 0")
        if self.accelerator_type:
            slice_of(self.accelerator_type)
            object.__setattr__(self, "accelerator_type", google_name(self.accelerator_type))

    @property
    def token(self) -> Path | None:
        """The file of the Hugging Face token; UsageError if it is set but missing or empty."""
        if not self.hf_token_file:
            return None
        path = Path(self.hf_token_file).expanduser()
        if not path.is_file() or not path.read_text(encoding="utf-8-sig").strip():
            raise UsageError(f"hf_token_file {path}: missing or empty; log in with `hf auth login`, or give another")
        return path


def google_name(accelerator_type: str) -> str:
    """An accelerator type as spelled by Google Cloud: in lower case, with v5litepod for v5e."""
    family, dash, number = accelerator_type.strip().lower().partition("-")
    return {"v5e": "v5litepod"}.get(family, family) + dash + number


def slice_of(accelerator_type: str) -> Slice:
    """Chips, hosts and image of an accelerator type; UsageError with the nearest names if it is unknown."""
    family_name, _, number = google_name(accelerator_type).partition("-")
    family = FAMILIES.get(family_name)
    if family is None or not number.isdigit():
        likest = difflib.get_close_matches(family_name, FAMILIES, 2, cutoff=0.0)
        likest = ", ".join(f"{name}-{number if number.isdigit() else 64}" for name in likest)
        raise UsageError(f"accelerator type {accelerator_type!r}: unknown, the nearest are {likest}")
    chips, rest = divmod(int(number), family.cores_a_chip)
    if rest or chips < 1 or (chips > family.one_host and chips % CHIPS_A_HOST):
        raise UsageError(f"accelerator type {accelerator_type!r}: no such size, for instance {family_name}-64")
    hosts = 1 if chips <= family.one_host else chips // CHIPS_A_HOST
    return Slice(chips, hosts, family.runtime)


def read_settings(file: str | None, flags: dict[str, Any]) -> Settings:
    """The file's values, overridden by the given flags."""
    values = read_file(Path(file)) if file else {}
    given = {key: value for key, value in flags.items() if value is not None}
    env = dict(values.pop("env", ())) | dict(given.pop("env", ()))
    return replace(Settings(**values), env=tuple(sorted(env.items())), **given)


def read_file(path: Path) -> dict[str, Any]:
    """The settings in an ini file: a [launch] section of `key = value`, and an [env] section."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keep the case of variable names
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"), source=str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None
    unknown = set(parser.sections()) - {"launch", "env"}
    if unknown:
        raise UsageError(f"{path}: section [{sorted(unknown)[0]}] is not known: there are [launch] and [env]")
    kinds = {key.name: type(key.default) for key in fields(Settings) if key.name != "env"}
    values: dict[str, Any] = {}
    for key, text in parser["launch"].items() if "launch" in parser else ():
        if key not in kinds:
            raise UsageError(f"{path}: {key} is not known in [launch]; known are {', '.join(kinds)}")
        values[key] = convert(f"{path}: {key}", " ".join(text.split()), kinds[key])
    if "env" in parser:
        values["env"] = tuple(parser["env"].items())
    return values


def convert(what: str, text: str, kind: type) -> Any:
    """Parses text as a value of this type; the UsageError starts with `what`."""
    if kind is bool:
        if text.lower() not in YES + NO:
            raise UsageError(f"{what}: {text!r} must be yes or no")
        return text.lower() in YES
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{what}: {text!r} is not a number") from None
