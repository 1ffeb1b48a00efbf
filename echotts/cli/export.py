"""`echotts export`: writes a run's weights, or a model with an adapter, to a single file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echotts.cli.app import parse

PROG = "echotts export"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write the weights of a run to one file: .safetensors for `echotts speak`, or .pkl in the published layout.

    Of a run with --tune lora this is the adapter alone; with --adapter, a model with its adapter merged.
    """

    run_dir: str | None = None
    """Run directory, local or gs://bucket/run (uses its best or newest complete checkpoint), or one of its step_*
    folders. Either this or --adapter is required."""
    adapter: str | None = None
    """Adapter to merge into --checkpoint: a .safetensors, or the run directory that trained it."""
    checkpoint: str = "demo"
    """Model that the adapter was trained for: an export, a run directory, a published .pkl, or the built-in demo."""
    output: Path
    """File to write, .safetensors or .pkl; missing folders are created."""
    weights: Literal["ema", "raw"] | None = None
    """ema: the moving average, which sounds better; raw: the weights as trained. None: ema for .safetensors; raw with
    optimizer state for .pkl, which `echotts train --init_from FILE --resume_optimizer` can continue from."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Storage type of the numbers in a .safetensors. A base to which --tune duration or distil added something keeps
    its own."""

    def __post_init__(self) -> None:
        if (self.run_dir is None) == (self.adapter is None):
            raise ValueError("give either --run_dir or --adapter")


def main(argv: list[str]) -> int:
    """Parses the arguments, exports, prints a summary; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    from echotts.files import check_outputs
    from echotts.gcs import is_bucket

    source = arguments.run_dir or arguments.adapter or ""
    if not is_bucket(source) and not Path(source).expanduser().exists():
        raise FileNotFoundError(f"{source}: no such {'adapter' if arguments.adapter else 'run directory'}")
    check_outputs([arguments.output], filter(None, [arguments.adapter, arguments.checkpoint]))
    from echotts.checkpoint.export import export, export_merged

    if arguments.adapter is not None:
        facts = export_merged(arguments.checkpoint, arguments.adapter, arguments.output, arguments.dtype)
    else:
        facts = export(source, arguments.output, arguments.weights, arguments.dtype)
    size_mb = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output}: {facts.weights} weights of step {facts.step}, {size_mb:.1f} MB")
    return 0
