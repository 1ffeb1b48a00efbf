"""Peak memory of decoding at full size (DACVAE, 48 kHz): 10 minutes of audio against 10 seconds.

    python -m benchmarks.codec_memory         # about 20 minutes on two cores; --minutes 2 is faster

Each length is decoded in its own process, with the weights of the golden files. The figure is that process's peak
resident memory, including weights, runtime, latents and the complete audio (115 MB of float32 for 10 minutes)
(target: at most 300 MiB more for 10 minutes than for 10 seconds). Encoding is measured in the same way.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.codec_decode import HOP, full_size_codec
from echotts.codec import Codec, load_codec, save_codec
from tests.dacvae_golden import filled_weights

SHORT_S = 10.0
TARGET_MIB = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the long audio")
    parser.add_argument("--ways", nargs="*", default=["decode", "encode"], choices=["decode", "encode"])
    parser.add_argument("--measure", nargs=3, help="codec, way, seconds: measure in this process, print it as JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        path, way, seconds = arguments.measure
        print(json.dumps(measure(load_codec(path), way, float(seconds))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codec.safetensors"
        codec = full_size_codec(filled_weights(0))
        save_codec(path, codec.params, codec.config, codec.codec_id)
        del codec
        for way in arguments.ways:
            peaks = []
            for seconds in (SHORT_S, 60 * arguments.minutes):
                command = [sys.executable, "-m", "benchmarks.codec_memory", "--measure", str(path), way, str(seconds)]
                result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                peaks.append(result["peak_mib"])
                print(f"{way} {seconds:3.0f} s: peak {peaks[-1]:5.0f} MiB, {result['cpu_s']:.0f} CPU s", flush=True)
            difference, ratio = peaks[1] - peaks[0], peaks[1] / peaks[0]
            print(f"{way}: {difference:.0f} MiB more (target at most {TARGET_MIB}), ratio {ratio:.2f}", flush=True)


def measure(codec: Codec, way: str, seconds: float) -> dict[str, float]:
    """Peak resident memory of this process in MiB and its CPU time, after decoding or encoding this much audio."""
    rng = np.random.default_rng(0)
    frames = round(seconds * codec.sample_rate / HOP)
    if way == "decode":
        codec.decode(rng.standard_normal((1, frames, codec.latent_channels), np.float32))
    else:
        codec.encode(rng.standard_normal((1, frames * HOP), np.float32))
    return {"peak_mib": peak_mib(), "cpu_s": time.process_time()}


def peak_mib() -> float:
    """Of this program alone: getrusage's figure starts with the size of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
