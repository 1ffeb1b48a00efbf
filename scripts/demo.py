"""`make demo`: the whole workflow on two CPU cores, with the commands a user would type, each printed before it runs.

    python scripts/demo.py [--steps 2400] [--output demo]

Prepares the built-in corpus, trains the demo preset on it from scratch, then a duration predictor for it, and exports
both; then speaks three unseen strings with two reference voices and runs the evaluation. Finished stages are not
repeated: delete the folder to start over.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORPUS = Path("echotts/assets/digits")
VOICES = ("us", "f2")
STRINGS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="training steps (default: those of the preset)")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="output folder")
    arguments = parser.parse_args()
    output, began = arguments.output.resolve(), time.monotonic()
    output = output.relative_to(ROOT) if output.is_relative_to(ROOT) else output
    os.chdir(ROOT)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))

    for split in ("train", "heldout"):
        run("-m echotts data prepare", source=CORPUS / f"{split}-*.tar.gz", output=output / split, codec="demo")
    steps = {} if arguments.steps is None else {"steps": arguments.steps}
    data = {"data": output / "train", "heldout": output / "heldout"}
    run("train_pretrain.py", preset="demo", **data, run_dir=output / "run", **steps)
    weights, model = output / "weights.safetensors", output / "model.safetensors"
    run("-m echotts export", run_dir=output / "run", output=weights)
    lengths = output / "lengths"
    run("-m echotts train", tune="duration", init_from=weights, **data, run_dir=lengths, **steps)
    run("-m echotts export", run_dir=lengths, output=model)
    texts = heldout_texts()
    for voice in VOICES:
        reference = extract_reference(voice, output)
        for text in texts:
            spoken = output / f"{text.replace(' ', '_')}_{voice}.wav"
            run("inference.py", checkpoint=model, text=text, speaker_ref=reference, output=spoken)
    run("-m echotts eval", checkpoint=model, output=output / "meter.json")
    print(f"\n{(time.monotonic() - began) / 60:.0f} minutes in total. Listen to {output}/*.wav", flush=True)
    return 0


def run(command: str, **flags: object) -> None:
    """Prints and runs `python COMMAND --FLAG VALUE ...`; if it fails, exits with its exit code."""
    words = command.split() + [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def heldout_texts() -> list[str]:
    """The first strings of the held-out split; none of them is in the training split."""
    return [json.loads(data)["text"] for name, data in members("heldout").items() if name.endswith(".json")][:STRINGS]


def extract_reference(voice: str, output: Path) -> Path:
    """Extracts a recording of the voice from the reference split to a file."""
    clips = members("reference")
    for name, data in clips.items():
        if name.endswith(".json") and json.loads(data)["speaker"] == voice:
            path = output / f"reference_{voice}.opus"
            path.write_bytes(clips[name.removesuffix(".json") + ".opus"])
            return path
    sys.exit(f"{CORPUS}: no reference of the voice {voice}")


def members(split: str) -> dict[str, bytes]:
    """All files in a split of the corpus, by name."""
    found = {}
    for path in sorted(CORPUS.glob(f"{split}-*.tar.gz")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    found[member.name] = file.read()
    return found


if __name__ == "__main__":
    sys.exit(main())
