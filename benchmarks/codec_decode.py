"""CPU time of decoding 10 s at full size (DACVAE, 48 kHz), against PyTorch with the same weights.

    pip install --no-deps descript-audio-codec==1.0.0     # the PyTorch model; of its own list it needs torch and einops
    python -m benchmarks.codec_decode                     # about 5 minutes on two cores

Weights are those of the golden files (tests/golden/README_dacvae.md). The PyTorch side is that package's
Decoder(1024, 1536, [12, 10, 8, 2]) after the codec's own 1x1 output projection, the whole signal at once, weight norm
removed as one does for inference. Ours is Codec.decode in its default windows, on the host when it returns. Both give
the same audio (the largest difference is printed); what counts is the CPU time over all threads (target: ratio at
most 1).
"""

import argparse
from typing import Any

import numpy as np

from benchmarks.measure import best_of
from echotts.codec import Codec
from echotts.codec.published import read_published
from tests.codec.descript import dac_module
from tests.dacvae_golden import KWARGS, filled_weights

HOP = 1920


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the audio")
    parser.add_argument("--rounds", type=int, default=3, help="timed decodings of each side")
    parser.add_argument("--window_frames", type=int, nargs="*", default=[], help="further window widths to try")
    arguments = parser.parse_args()
    weights = filled_weights(0)
    latent = np.random.default_rng(0).standard_normal((1, round(arguments.seconds * 48000 / HOP), 128), np.float32)
    codec = full_size_codec(weights)
    theirs = torch_decoder(weights)
    sides: dict[str, Any] = {"echotts": lambda: codec.decode(latent), "pytorch": lambda: theirs(latent)}
    for frames in arguments.window_frames:
        other = Codec(codec.params, codec.config, codec.codec_id, window_frames=frames)
        sides[f"echotts, windows of {frames}"] = lambda other=other: other.decode(latent)
    print(f"largest difference {np.abs(codec.decode(latent) - theirs(latent)).max():.1e}", flush=True)
    spent = best_of(sides, arguments.rounds)
    for name, side in spent.items():
        ratio = side.cpu / spent["pytorch"].cpu
        print(f"{name:24s} {side.cpu:6.1f} CPU seconds, {side.wall:6.1f} s, {ratio:.2f} of PyTorch's CPU time")
    print(f"ratio {spent['echotts'].cpu / spent['pytorch'].cpu:.2f} (target 1)")


def full_size_codec(weights: dict[str, np.ndarray]) -> Codec:
    """The codec of the golden files, by way of the file format."""
    import tempfile
    from pathlib import Path

    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        state = {key: torch.from_numpy(tensor) for key, tensor in weights.items()}
        torch.save({"state_dict": state, "metadata": {"kwargs": KWARGS}}, path)
        return Codec(*read_published(path), "golden")


def torch_decoder(weights: dict[str, np.ndarray]) -> Any:
    """Latents (1, t, 128) to audio (1, n) by descript-audio-codec's Decoder."""
    import torch

    decoder = dac_module().Decoder(1024, 1536, [12, 10, 8, 2])
    state = {}
    for key in decoder.state_dict():
        _, module, rest = key.split(".", 2)
        state[key] = torch.from_numpy(weights[published_name(int(module), rest)])
    decoder.load_state_dict(state)
    for module in decoder.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    projection = torch.nn.utils.weight_norm(torch.nn.Conv1d(128, 1024, 1))
    prefix = "quantizer.out_proj."
    projection.load_state_dict(
        {key.removeprefix(prefix): torch.from_numpy(value) for key, value in weights.items() if key.startswith(prefix)}
    )
    torch.nn.utils.remove_weight_norm(projection)

    def decode(latent: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return decoder(projection(torch.from_numpy(latent).mT))[:, 0].numpy()

    return decode


def published_name(module: int, rest: str) -> str:
    """DACVAE's key of a tensor of Decoder.model: units are blocks 4, 5, 8 there, and the head is in the watermark's."""
    if module >= 5:
        return f"decoder.wm_model.encoder_block.pre.{module - 5}.{rest}"
    for ours, theirs in (("block.2.", "block.4."), ("block.3.", "block.5."), ("block.4.", "block.8.")):
        if rest.startswith(ours):
            rest = theirs + rest.removeprefix(ours)
            break
    return f"decoder.model.{module}.{rest}"


if __name__ == "__main__":
    main()
