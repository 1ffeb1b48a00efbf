"""A trained codec as the published .pth: the reference modules load it and give the same results."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from echotts.codec import load_codec
from echotts.codec.backbone import init_params
from echotts.codec.config import CodecConfig
from echotts.codec.publish import write_published
from echotts.codec.training.config import CodecTraining, CropConfig, DiscriminatorConfig, LossConfig
from echotts.codec.training.loop import train_codec
from echotts.codec.watermark import init_watermark
from echotts.config import RunConfig
from tests.codec import descript
from tests.codec.training.test_loop import Tones

DACVAE = CodecConfig(
    encoder_dim=4,
    encoder_rates=(2, 4),
    latent_dim=8,
    decoder_dim=16,
    decoder_rates=(4, 2),
    codebook_dim=3,
    sample_rate=8000,
)
SMALL_JUDGES = DiscriminatorConfig(
    periods=(2,), period_channels=(2, 2, 2, 2, 2), windows=(64,), bands=(0.0, 1.0), band_channels=2
)
DAC = dataclasses.replace(DACVAE, n_codebooks=2, codebook_size=16, codebook_dim=4)


@pytest.fixture(scope="module")
def reference() -> Any:
    """The modules of the PyPI package descript-audio-codec."""
    if not descript.installed():
        pytest.skip("needs descript-audio-codec: make bench-env")
    return descript.dac_module()


def decoded_by(reference: Any, state: dict[str, torch.Tensor], config: CodecConfig, latent: np.ndarray) -> np.ndarray:
    """Audio by the reference decoder; DACVAE's modules are renamed to DAC's, whose main path is the same."""
    decoder = reference.Decoder(config.latent_dim, config.decoder_dim, list(config.decoder_rates))
    last = len(config.decoder_rates) + 1
    own = {}
    for name, tensor in state.items():
        for before, after in (
            ("wm_model.encoder_block.pre.0", f"model.{last}"),
            ("wm_model.encoder_block.pre.1", f"model.{last + 1}"),
        ):
            name = name.replace(before, after)
        for before, after in ((".block.4.", ".block.2."), (".block.5.", ".block.3."), (".block.8.", ".block.4.")):
            name = name.replace(before, after) if not config.quantized else name
        own[name] = tensor
    decoder.load_state_dict({n.removeprefix("decoder."): t for n, t in own.items() if n.startswith("decoder.model.")})
    with torch.no_grad():
        return decoder(torch.tensor(latent).transpose(1, 2)).numpy()[:, 0]


def test_the_reference_decoder_agrees_with_a_fine_tuned_export(reference: Any, tmp_path: Path):
    write_published(tmp_path / "weights.pth", init_params(DACVAE, jax.random.key(0)), DACVAE)
    base = load_codec(tmp_path / "weights.pth")
    training = CodecTraining(
        codec=base.config,
        steps=2,
        batch_size=2,
        frames=32,
        loss=LossConfig(mel_scales=((64, 8),), stft_windows=(), feature=0.0, adversarial=0.0),
        crops=CropConfig(),
        run=RunConfig(run_dir=str(tmp_path / "run"), eval_every=0, sample_every=0),
    )
    params, _ = train_codec(training, Tones(), start=base.params)
    write_published(tmp_path / "tuned.pth", params, base.config)
    tuned = load_codec(tmp_path / "tuned.pth")
    assert tuned.config == base.config and tuned.weights_hash != base.weights_hash

    state = torch.load(tmp_path / "tuned.pth", weights_only=True)["state_dict"]
    latent = np.random.default_rng(0).standard_normal((1, 20, 3)).astype(np.float32)
    gain, direction = state["quantizer.out_proj.weight_g"], state["quantizer.out_proj.weight_v"]
    kernel = gain * direction / torch.linalg.norm(direction, dim=(1, 2), keepdim=True)
    inner = latent @ kernel[:, :, 0].numpy().T + state["quantizer.out_proj.bias"].numpy()
    np.testing.assert_allclose(decoded_by(reference, state, DACVAE, inner), tuned.decode(latent), atol=2e-6)


def test_the_quantizer_goes_through_the_file_and_back(reference: Any, tmp_path: Path):
    params = init_params(DAC, jax.random.key(1))
    write_published(tmp_path / "dac.pth", params, DAC)
    found = load_codec(tmp_path / "dac.pth")
    assert found.config == DAC
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found.params, params)
    state = torch.load(tmp_path / "dac.pth", weights_only=True)["state_dict"]
    embedding = np.random.default_rng(0).standard_normal((1, 9, DAC.latent_dim)).astype(np.float32)
    np.testing.assert_allclose(decoded_by(reference, state, DAC, embedding), found.decode(embedding), atol=2e-6)


def test_a_dac_is_trained_from_nothing_and_the_reference_gives_its_codes_and_audio(reference: Any, tmp_path: Path):
    training = CodecTraining(
        codec=dataclasses.replace(DAC, encoder_dim=4, latent_dim=16),
        steps=4,
        batch_size=2,
        frames=32,
        loss=LossConfig(mel_scales=((64, 8),), stft_windows=(), adversarial_from=1),
        discriminators=SMALL_JUDGES,
        run=RunConfig(run_dir=str(tmp_path / "run"), eval_every=0, sample_every=0),
    )
    params, step = train_codec(training, Tones())
    assert step == 4
    write_published(tmp_path / "dac.pth", params, training.codec)
    written = torch.load(tmp_path / "dac.pth", weights_only=True)
    model = reference.DAC(**written["metadata"]["kwargs"]).eval()
    model.load_state_dict(written["state_dict"])
    audio = Tones().read(3, 0.0, 0.25, 8000)[None, :1600]
    with torch.no_grad():
        z, codes, *_ = model.encode(torch.tensor(audio)[:, None])
        decoded = model.decode(z)[:, 0].numpy()
    codec = load_codec(tmp_path / "dac.pth")
    tokens = codec.encode_tokens(audio)
    np.testing.assert_array_equal(tokens.codes, codes.numpy())
    np.testing.assert_allclose(codec.decode(codes=tokens.codes), decoded, atol=1e-5)


def test_a_watermark_goes_through_the_file_and_back(tmp_path: Path):
    published = dataclasses.replace(DACVAE, encoder_rates=(2, 2, 2, 2), decoder_rates=(2, 2, 2, 2))
    params = init_params(published, jax.random.key(2)) | {"watermark": init_watermark(jax.random.key(3))}
    write_published(tmp_path / "marked.pth", params, published)
    found = load_codec(tmp_path / "marked.pth").params["watermark"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, params["watermark"])
