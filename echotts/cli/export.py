"""`echotts export`: writes a run's weights to a single file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli.app import parse

PROG = "echotts export"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write the weights of a run to one file: .safetensors for `echotts speak`, or .pkl in the published layout."""

    run_dir: str
    """Run directory, local or gs://bucket/run (uses its newest complete checkpoint), or one of its step_* folders."""
    output: Path
    """File to write, .safetensors or .pkl; missing folders are created."""
    weights: Literal["ema", "raw"] | None = None
    """ema: the moving average, which sounds better; raw: the weights as trained. None: ema for .safetensors; raw with
    optimizer state for .pkl, which `echotts train --init_from FILE --resume_optimizer` can continue from."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Storage type of the numbers in a .safetensors."""


def main(argv: list[str]) -> int:
    """Parses the arguments, exports, prints a summary; returns the exit code."""
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
