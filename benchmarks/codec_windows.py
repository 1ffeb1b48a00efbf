"""CPU time of encoding and decoding a window, DACVAE 48 kHz and DAC 44.1 kHz, against PyTorch with the same weights.

    make bench-env                                  # descript-audio-codec, the PyTorch side
    python -m benchmarks.codec_windows --plot docs/codec_windows.svg      # an hour on two busy cores

Windows of 0.37 to 20 s, as in the figures of the papers. The PyTorch side processes isolated windows, weight norm
removed: joined, such windows have seams. Ours are successive windows of a stream, with the result of a single pass;
windows wider than `window_frames` are split. Both sides take turns in one process; PyTorch has one thread, since
threads waiting for each other cost CPU time on a busy machine. The criterion is CPU time over all threads (target: at
most 0.6 of PyTorch's for every window).
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codec_decode import full_size_codec, published_name
from benchmarks.measure import Spent, best_of
from echotts.codec import Codec
from echotts.codec.published import _params, config_from_kwargs
from echotts.codec.windows import DecoderStream, EncoderStream
from tests import dacvae_golden, rvq_golden
from tests.codec.descript import dac_module

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
WINDOWS_S = (0.37, 1.0, 3.0, 10.0, 20.0)
TARGET = 0.6
COLOURS = {"DACVAE 48 kHz encode": "#1b6ca8", "DACVAE 48 kHz decode": "#c0392b"}
COLOURS |= {"DAC 44.1 kHz encode": "#2e8b57", "DAC 44.1 kHz decode": "#8e44ad"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows_s", type=float, nargs="*", default=WINDOWS_S, help="lengths of the windows")
    parser.add_argument("--rounds", type=int, default=2, help="timed windows of each side")
    parser.add_argument("--plot", type=Path, help="an SVG to draw: CPU seconds over the window's length, log-log")
    arguments = parser.parse_args()
    measured: dict[str, list[tuple[float, Spent, Spent]]] = {}
    for make in (dacvae, dac):
        for name, codec, theirs, decode in make():
            for seconds in arguments.windows_s:
                ours, torch = measure(codec, theirs, decode, seconds, arguments.rounds)
                measured.setdefault(name, []).append((seconds, ours, torch))
                figures = f"{ours.cpu:6.2f} CPU s, PyTorch {torch.cpu:6.2f}, ratio {ours.cpu / torch.cpu:.2f}"
                print(f"{name} {seconds:5.2f} s: {figures}", flush=True)
    worst = max(ours.cpu / torch.cpu for rows in measured.values() for _, ours, torch in rows)
    print(f"largest ratio {worst:.2f} (target at most {TARGET})")
    if arguments.plot:
        arguments.plot.write_text(plot(measured))


def measure(codec: Codec, theirs: Any, decode: bool, seconds: float, rounds: int) -> tuple[Spent, Spent]:
    parts = -(-round(seconds * codec.sample_rate / codec.hop_length) // codec.window_frames)
    width = round(seconds * codec.sample_rate / codec.hop_length / parts)
    frames = parts * width
    rng = np.random.default_rng(0)
    shape = (1, frames, codec.latent_channels) if decode else (1, frames * codec.hop_length)
    window = rng.standard_normal(shape, np.float32)
    kind = DecoderStream if decode else EncoderStream
    stream = kind(codec.decoding if decode else codec.encoding, codec.config, 1, (width,))
    for _ in range(2):  # past the start: each push now returns a full window
        stream.push(window)
    spent = best_of({"ours": lambda: stream.push(window), "pytorch": lambda: theirs(window)}, rounds)
    return spent["ours"], spent["pytorch"]


def dacvae() -> Any:
    import torch

    weights = dacvae_golden.filled_weights(0)
    codec = full_size_codec(weights)
    module = dac_module()
    names = {key: key.split(".", 2) for key in module.Decoder(1024, 1536, [12, 10, 8, 2]).state_dict()}
    names = {key: published_name(int(number), rest) for key, (_, number, rest) in names.items()}
    decoder = loaded(module.Decoder(1024, 1536, [12, 10, 8, 2]), lambda key: weights[names[key]])
    encoder = loaded(module.Encoder(64, [2, 8, 10, 12], 1024), lambda key: weights[f"encoder.{key}"])
    inward, outward = (
        loaded(
            torch.nn.utils.weight_norm(torch.nn.Conv1d(*sizes, 1)),
            lambda key, name=name: weights[f"quantizer.{name}.{key}"],
        )
        for name, sizes in (("in_proj", (1024, 256)), ("out_proj", (128, 1024)))
    )
    yield "DACVAE 48 kHz encode", codec, lambda x: inward(encoder(torch.from_numpy(x)[:, None])), False
    yield "DACVAE 48 kHz decode", codec, lambda z: decoder(outward(torch.from_numpy(z).mT)), True


def dac() -> Any:
    import torch

    weights, kwargs = rvq_golden.filled_weights("44khz"), rvq_golden.KWARGS["44khz"]
    config = config_from_kwargs(kwargs, "golden")
    codec = Codec(_params(dict(weights), config, "golden"), config, "golden")
    model = loaded(dac_module().DAC(**kwargs).eval(), lambda key: weights[key])
    yield "DAC 44.1 kHz encode", codec, lambda x: model.encode(torch.from_numpy(x)[:, None]), False
    yield "DAC 44.1 kHz decode", codec, lambda z: model.decode(torch.from_numpy(z).mT), True


def loaded(model: Any, weight: Callable[[str], np.ndarray]) -> Any:
    """The PyTorch module with these weights, weight norm folded, without gradients."""
    import torch

    model.load_state_dict({key: torch.from_numpy(weight(key)) for key in model.state_dict()})
    for module in model.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    return model.requires_grad_(False)


def plot(measured: dict[str, list[tuple[float, Spent, Spent]]]) -> str:
    """Plots CPU seconds over seconds of audio: ours solid, PyTorch dashed."""
    width, height, left, bottom = 720, 440, 60, 390
    seconds = [row[0] for rows in measured.values() for row in rows]
    cpu = [side.cpu for rows in measured.values() for row in rows for side in row[1:]]
    limits = [np.log10([min(values) / 1.3, max(values) * 1.3]) for values in (seconds, cpu)]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (np.log10(x) - limits[0][0]) / (limits[0][1] - limits[0][0])
        up = (np.log10(y) - limits[1][0]) / (limits[1][1] - limits[1][0])
        return left + across * 440, bottom - up * 360

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for value in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100):
        for axis, lim in enumerate(limits):
            if lim[0] <= np.log10(value) <= lim[1]:
                x, y = place(value, 10 ** limits[1][0]) if axis == 0 else place(10 ** limits[0][0], value)
                end = (x, 30) if axis == 0 else (left + 440, y)
                at = (x - 6, bottom + 16) if axis == 0 else (left - 32, y + 4)
                parts.append(f'<path d="M{x:.1f} {y:.1f} L{end[0]:.1f} {end[1]:.1f}" stroke="#ddd"/>')
                parts.append(f'<text x="{at[0]:.1f}" y="{at[1]:.1f}">{value:g}</text>')
    for number, (name, rows) in enumerate(measured.items()):
        for side, dash in ((1, ""), (2, ' stroke-dasharray="5 4"')):
            points = " ".join("{:.1f},{:.1f}".format(*place(row[0], row[side].cpu)) for row in rows)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="515" y="{60 + 20 * number}" fill="{COLOURS[name]}">{name}</text>')
    parts.append('<text x="515" y="160">solid: echotts, dashed: PyTorch</text>')
    parts.append(f'<text x="{left + 130}" y="{height - 12}">window, seconds of sound</text>')
    parts.append(f'<text x="{left}" y="20">CPU seconds, all threads</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
