"""Time from a text to its first audio, and the real-time factor of live speech, in this process and of `echotts speak`.

    python -m benchmarks.live [--checkpoint model.safetensors] [--steps 32]    # about a minute on two cores

warm: `tts.stream` after `warm_up`, the fastest of ROUNDS, wall-clock and CPU seconds of all threads until the first
block and until the last; the real-time factor is the time after the first block by the duration of all other blocks.
gap: how long a player without a buffer would have waited for a block at most. cold: from starting `echotts speak
--output -` to its first byte, with a compile cache that an unmeasured run has filled. CPU seconds hardly depend on what
else the machine does. Targets for the built-in voice on two cores: warm 0.5 s, real-time factor below 1, cold 3 s.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

from echotts import EchoTTS
from echotts.flow.options import SamplerConfig

TEXT = (
    "one two three four. five six seven, eight nine zero one two. three four five six seven eight. nine zero one two."
)
ROUNDS = 5


def warm(tts: EchoTTS, sampler: SamplerConfig) -> tuple[float, float, float, float, float]:
    """Wall and CPU seconds to the first block, the same per second of later audio, and the longest gap in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    first_s = first_cpu = heard_s = first_heard_s = gap_s = 0.0
    for block in tts.stream(TEXT, seed=1, sampler=sampler):
        now = time.perf_counter() - wall
        if not first_s:
            first_s, first_cpu, first_heard_s = now, time.process_time() - cpu, block.duration_s
        gap_s = max(gap_s, now - first_s - heard_s)
        heard_s += block.duration_s
    rest_s = heard_s - first_heard_s
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return first_s, first_cpu, (wall - first_s) / rest_s, (cpu - first_cpu) / rest_s, gap_s


def cold(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds from the start of the command to its first byte; CPU of the whole command."""
    command = [sys.executable, "-m", "echotts", "speak", "--text", TEXT, "--output", "-", *arguments]
    began, before = time.perf_counter(), _children_cpu_s()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise RuntimeError(f"{' '.join(command)}: no audio, exit code {process.wait()}")
        first_s = time.perf_counter() - began
        process.stdout.close()  # the command ends when it writes the next block
        process.wait()
    return first_s, _children_cpu_s() - before


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--steps", type=int, default=32)
    given = parser.parse_args()
    tts = EchoTTS.load(given.checkpoint)
    tts.warm_up(steps=given.steps)
    sampler = SamplerConfig(steps=given.steps)
    list(tts.stream(TEXT, seed=1, sampler=sampler))
    rounds = [warm(tts, sampler) for _ in range(ROUNDS)]
    first_s, first_cpu, factor, factor_cpu, gap_s = (min(values) for values in zip(*rounds, strict=True))
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"warm: first audio after {first_s:.2f} s ({first_cpu:.2f} CPU s)")
    print(
        f"warm: real-time factor after that {factor:.2f} ({factor_cpu:.2f} CPU s per second), longest gap {gap_s:.2f} s"
    )
    flags = ["--steps", str(given.steps), *(["--checkpoint", given.checkpoint] if given.checkpoint else [])]
    cold(flags)
    first_s, cpu_s = (min(values) for values in zip(*(cold(flags) for _ in range(3)), strict=True))
    print(f"cold: first audio after {first_s:.2f} s ({cpu_s:.2f} CPU s of the command)")


if __name__ == "__main__":
    main()
