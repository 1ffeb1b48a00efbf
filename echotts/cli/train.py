"""`echotts train`: trains a model on shards of latents."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from echotts import config as configs
from echotts.cli.app import EXIT_ASKED_TO_LEAVE, UsageError, parse
from echotts.config import (
    Bucket,
    Config,
    DataConfig,
    FlowConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TuneConfig,
    TuneName,
)

PROG = "echotts train"
SHORT = {  # flag -> (section, key) that it abbreviates
    "data": ("data", "data"),
    "heldout": ("data", "heldout"),
    "batch_size": ("data", "batch_size"),
    "run_dir": ("run", "run_dir"),
    "seed": ("run", "seed"),
    "tune": ("tune", "method"),
    "init_from": ("run", "init_from"),
    "resume_optimizer": ("run", "resume_optimizer"),
    "steps": ("optim", "steps"),
}
SECTIONS = ("model", "flow", "data", "optim", "tune", "run")
DISTIL_FROM = "--distil_from"
HELDOUT = "heldout"  # folder in a dataset, by `echotts data prepare --heldout_share`


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train a model on shards of latents. Repeating the command resumes the run in --run_dir, bitwise identically.

    Defaults are those of the preset; every key can be set, as in --model.remat full. The flags before --model.*
    abbreviate the keys in brackets. Ctrl-C or SIGTERM saves and exits with code 75.
    """

    preset: Literal["demo", "small", "840m", "1.3b"]
    """Model sizes and schedule to start from; with --tune, the sizes are those of --init_from."""
    data: str
    """Shards to train on: a folder, a glob in quotes, s-{000..099}.tar, hf://datasets/ORG/NAME@REV/s-{000..999}.tar,
    https:// or gs://; '0.7 * A + 0.3 * B' mixes [data.data]. Required."""
    run_dir: str
    """Directory for checkpoints, metrics and samples, local or gs://bucket/run; created if missing, else resumed
    [run.run_dir]. Required."""
    steps: int
    """Total optimizer steps; the learning rate reaches 0 at the last one [optim.steps]."""
    batch_size: int
    """Samples per step, over all devices [data.batch_size]."""
    heldout: str | None
    """Shards for evaluation; never trained on [data.heldout]."""
    tune: TuneName
    """Adapt the model given as --init_from to a voice, with defaults for minutes of speech: full trains all weights,
    lora only adapters beside them, inversion only a reference; duration adds a predictor of how long speech takes,
    distil a student that takes few steps [tune.method]."""
    distil_from: str | None
    """Train a student of this model, which takes 4 steps of one forward each instead of 32 guided ones; short for
    --tune distil --init_from MODEL."""
    init_from: str | None
    """Initial weights: an export, a published .pkl, another run, or built-in: demo, english [run.init_from]."""
    resume_optimizer: bool
    """Also take optimizer state, step and samples seen from the .pkl given as --init_from, and continue at that step
    [run.resume_optimizer]."""
    seed: int
    """Random seed of initial weights, data order, timesteps and noise [run.seed]."""
    model: ModelConfig
    flow: FlowConfig
    data_section: Annotated[DataConfig, tyro.conf.arg(name="data")]
    optim: OptimConfig
    tune_section: Annotated[TuneConfig, tyro.conf.arg(name="tune")]
    run: RunConfig


def main(argv: list[str]) -> int:
    """Parses and checks the arguments, trains; returns the exit code, EXIT_ASKED_TO_LEAVE if stopped by a signal."""
    config = parse_config(argv)
    check_data(config)
    from echotts.evaluation.samples import make_speaker
    from echotts.rundir import tensorboard
    from echotts.training.loop import train

    if config.run.tensorboard:
        tensorboard.require()
    result = train(config, speak=make_speaker(config))
    if not result.finished:
        print(
            f"stopped and saved after step {result.step} of {config.optim.steps}; the same command resumes from there"
        )
        return EXIT_ASKED_TO_LEAVE
    best = "" if result.best_step is None else f", the best of them {result.best_step}"
    print(f"trained {result.step} steps on {result.samples_seen} samples{best}; {what_next(config)}")
    return 0


def what_next(config: Config) -> str:
    """The command that uses what was trained."""
    run_dir, base = config.run.run_dir, config.run.init_from
    if config.tune.method == "inversion":
        return f"save the voice with: echotts voice save NAME {run_dir}"
    if config.tune.method in ("duration", "distil"):
        what = "predictor" if config.tune.method == "duration" else "student"
        return f"write the model with its {what}: echotts export --run_dir {run_dir} --output model.safetensors"
    spoken = f"--checkpoint {base} --adapter {run_dir}" if config.tune.method == "lora" else f"--checkpoint {run_dir}"
    return f"listen to it with: echotts speak {spoken} --text ... --output out.wav"


def check_data(config: Config) -> None:
    """Raises ValueError or FileNotFoundError for missing local data, before jax is imported."""
    from echotts.data.remote.sources import check_local

    for data in filter(None, (config.data.data, config.data.heldout)):
        check_local(data)


def parse_config(argv: Sequence[str]) -> Config:
    """The resolved configuration: the preset overridden by the flags. Raises UsageError for a wrong call."""
    preset, sections = _defaults(argv)
    short = {flag: getattr(sections[section], key) for flag, (section, key) in SHORT.items()}
    fields = {name: f"{name}_section" if name in SHORT else name for name in SECTIONS}  # of Arguments
    given = Arguments(
        preset=preset,  # pyright: ignore[reportArgumentType]
        distil_from=_value(argv, DISTIL_FROM),
        **{field: sections[name] for name, field in fields.items()},
        **short,
    )
    arguments = parse(Arguments, argv, prog=PROG, default=given, registry=bucket_registry())
    sections = {name: getattr(arguments, field) for name, field in fields.items()}
    try:
        for flag, (section, key) in SHORT.items():
            if getattr(arguments, flag) != short[flag]:
                sections[section] = dataclasses.replace(sections[section], **{key: getattr(arguments, flag)})
        if sections["tune"].method != "none":
            sections["data"] = _with_heldout(sections["data"])
        config = Config(preset=arguments.preset, **sections)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for flag, value in (("data", config.data.data), ("run_dir", config.run.run_dir)):
        if not value:
            raise UsageError(f"--{flag} is missing (see {PROG} --help)")
    return config


def _defaults(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """(name, sections) of the preset named in the arguments, changed by --tune: the defaults of all other flags."""
    name = _value(argv, "--preset")
    method, base = _value(argv, "--tune", "--tune.method"), _value(argv, "--init_from", "--run.init_from")
    if teacher := _value(argv, DISTIL_FROM):
        if method or base:
            raise UsageError(
                f"{DISTIL_FROM} {teacher} is short for --tune distil --init_from {teacher}: give one of both"
            )
        method, base = "distil", teacher
    try:
        preset = configs.preset("demo" if name is None else name)
        tune: TuneName = next((known for known in get_args(TuneName) if known == method), "none")
        if tune == "none" or not base:  # if the method is unknown, the parser says so
            return preset.preset, {section: getattr(preset, section) for section in SECTIONS}
        from echotts.checkpoint.weights import read_about  # imports jax
        from echotts.training.recipes import tuning

        model, facts = read_about(base)
        preset = preset if name else configs.nearest_preset(model)
        return preset.preset, tuning(preset, tune, base, model, facts)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _value(argv: Sequence[str], *names: str) -> str | None:
    """The value of a flag with one of these names, the last one counts; None if it is missing."""
    found = None
    for place, argument in enumerate(argv):
        flag, _, value = argument.partition("=")
        if "--" + flag[2:].replace("-", "_") in names:
            found = value or "".join(argv[place + 1 : place + 2])
    return found


def _with_heldout(data: DataConfig) -> DataConfig:
    """With the held-out part of a local dataset, if there is one and no other is given."""
    folder = Path(data.data).expanduser() / HELDOUT
    return dataclasses.replace(data, heldout=str(folder)) if data.heldout is None and folder.is_dir() else data


def bucket_registry() -> tyro.constructors.ConstructorRegistry:
    """Buckets are written FRAMESxTOKENS, as in --data.buckets 384x256 768x768."""
    registry = tyro.constructors.ConstructorRegistry()

    def read(words: list[str]) -> Bucket:
        frames, _, tokens = words[0].partition("x")
        try:
            return Bucket(frames=int(frames), tokens=int(tokens))
        except ValueError:
            raise ValueError(f"bucket {words[0]!r} is not FRAMESxTOKENS, for instance 768x768") from None

    @registry.primitive_rule
    def bucket(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Bucket] | None:
        if info.type is not Bucket:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="FRAMESxTOKENS",
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, Bucket),
            str_from_instance=lambda value: [f"{value.frames}x{value.tokens}"],
        )

    return registry
