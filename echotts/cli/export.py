"""`echotts export`: a run's weights as one file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli.app import parse

PROG = "echotts export"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write the weights of a run as one file: .safetensors for `echotts speak`, .pkl as published checkpoints are."""

    run_dir: str
    """Run directory, local or gs://bucket/run (its newest whole checkpoint is taken), or one of its step_* folders."""
    output: Path
    """File to write, .safetensors or .pkl; folders are made."""
    weights: Literal["ema", "raw"] | None = None
    """The moving average, which speaks better, or the weights as trained. None: ema for .safetensors; for .pkl raw
    with the optimizer state, from which `echotts train --init_from FILE --resume_optimizer` goes on."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How a .safetensors stores each number: in 4, 2 or 2 bytes."""


def main(argv: list[str]) -> int:
    """Parse, export, say what was written; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    from echotts.files import check_outputs
    from echotts.gcs import is_bucket

    if not is_bucket(arguments.run_dir) and not Path(arguments.run_dir).expanduser().exists():
        raise FileNotFoundError(f"{arguments.run_dir}: no such run directory")
    check_outputs([arguments.output])
    from echotts.checkpoint.export import export

    facts = export(arguments.run_dir, arguments.output, arguments.weights, arguments.dtype)
    size_mb = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output}: {facts.weights} weights of step {facts.step}, {size_mb:.1f} MB")
    return 0
