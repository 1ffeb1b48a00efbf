"""DAC (residual vector quantization) against golden vectors, transformers' DacModel and descript-audio-codec."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from echotts.codec import Codec, load_codec, save_codec
from echotts.codec.quantizer import embed, nearest, quantize, quantize_for_training
from tests import rvq_golden
from tests.codec import descript
from tests.codec.conftest import TINY_DAC, noise
from tests.compiling import as_users_compile

torch = pytest.importorskip("torch")

RATES = tuple(rvq_golden.KWARGS)
AUDIO, DECODED = 5e-5, 1e-5
SMALL = {"encoder_dim": 4, "decoder_dim": 32, "codebook_size": 64}


@pytest.fixture(scope="module", params=["44khz", "24khz"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Codec]]:
    """A full-size codec from a file (300 MB) as the original writes it."""
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    state = {key: torch.from_numpy(value) for key, value in rvq_golden.filled_weights(request.param).items()}
    torch.save({"state_dict": state, "metadata": {"kwargs": rvq_golden.KWARGS[request.param]}}, path)
    yield request.param, load_codec(path)
    path.unlink()


@as_users_compile()
def test_codes_and_audio_are_golden(published: tuple[str, Codec]):
    name, codec = published
    golden = rvq_golden.arrays(name)
    tokens = codec.encode_tokens(golden["audio"])
    np.testing.assert_array_equal(tokens.codes, golden["codes"])
    for audio in (codec.decode(codes=golden["codes"]), codec.decode(tokens.embeddings)):
        assert audio.shape == golden["decoded"].shape
        assert np.abs(audio - golden["decoded"]).max() <= AUDIO


def small_kwargs(name: str) -> dict[str, Any]:
    return rvq_golden.KWARGS[name] | SMALL | {"latent_dim": 24}


def transformers_model(name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    kwargs = small_kwargs(name)
    torch.manual_seed(1)
    config = transformers.DacConfig(
        encoder_hidden_size=kwargs["encoder_dim"],
        downsampling_ratios=kwargs["encoder_rates"],
        decoder_hidden_size=kwargs["decoder_dim"],
        upsampling_ratios=kwargs["decoder_rates"],
        hidden_size=kwargs["latent_dim"],
        n_codebooks=kwargs["n_codebooks"],
        codebook_size=kwargs["codebook_size"],
        codebook_dim=kwargs["codebook_dim"],
        sampling_rate=kwargs["sample_rate"],
    )
    return randomised(transformers.DacModel(config).eval())


def randomised(model: Any) -> Any:
    """Weights large enough that audio is loud and each layer matters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.copy_(torch.exp(0.25 * torch.randn(parameter.shape)))
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * torch.randn(parameter.shape))
            elif not name.endswith(("weight_g", "original0")):
                quiet = 0.3 if "conv2" in name or ".block.3." in name else 1.0
                parameter.copy_(quiet * torch.randn(parameter.shape) / np.prod(parameter.shape[1:]) ** 0.5)
    return model


def padded(audio: np.ndarray, hop: int) -> Any:
    return torch.from_numpy(np.pad(audio, ((0, 0), (0, -audio.shape[1] % hop))))[:, None]


@pytest.mark.parametrize("name", RATES)
def test_a_folder_of_transformers_gives_its_codes_and_audio(name: str, tmp_path: Path):
    model = transformers_model(name)
    model.save_pretrained(tmp_path)
    codec = load_codec(tmp_path)
    assert codec.sample_rate == rvq_golden.KWARGS[name]["sample_rate"]
    audio = 0.3 * noise(2, 9 * codec.hop_length + 77)
    with torch.inference_mode():
        wanted = model.encode(padded(audio, codec.hop_length))
        decoded = model.decode(audio_codes=wanted.audio_codes).audio_values.numpy()
        fewer = model.encode(padded(audio, codec.hop_length), n_quantizers=3)
    tokens = codec.encode_tokens(audio)
    np.testing.assert_array_equal(tokens.codes, wanted.audio_codes)
    np.testing.assert_allclose(tokens.embeddings, wanted.quantized_representation.mT, atol=DECODED)
    np.testing.assert_allclose(codec.decode(codes=tokens.codes), decoded, atol=DECODED)
    np.testing.assert_allclose(codec.encode(audio, n_quantizers=3), fewer.quantized_representation.mT, atol=DECODED)
    np.testing.assert_array_equal(codec.encode_tokens(audio, 3).codes, fewer.audio_codes)
    short = 8 if codec.hop_length == 320 else 0
    assert decoded.shape[1] == 10 * codec.hop_length - short == codec.config.output_samples(10)


@pytest.fixture(scope="module")
def original() -> Any:
    if not descript.installed():
        pytest.skip("needs descript-audio-codec: make bench-env")
    return descript.dac_module()


@pytest.mark.parametrize("name", RATES)
def test_descript_audio_codecs_file_gives_its_codes_and_audio(name: str, original: Any, tmp_path: Path):
    torch.manual_seed(2)
    model = randomised(original.DAC(**small_kwargs(name)).eval())
    if name != "44khz_16kbps":
        assert set(model.state_dict()) == set(rvq_golden.shapes(name))  # of the real file
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": model.state_dict(), "metadata": {"kwargs": small_kwargs(name)}}, path)
    codec = load_codec(path)
    audio = 0.3 * noise(2, 7 * codec.hop_length + 5)
    with torch.inference_mode():
        z, codes, *_ = model.encode(padded(audio, codec.hop_length))
        decoded = model.decode(z)[:, 0].numpy()
    tokens = codec.encode_tokens(audio)
    np.testing.assert_array_equal(tokens.codes, codes)
    np.testing.assert_allclose(codec.decode(tokens.embeddings), decoded, atol=DECODED)
    np.testing.assert_allclose(codec.decode(codes=tokens.codes), decoded, atol=DECODED)


@pytest.mark.parametrize("prefix", ["dac.", "model.", ""])
def test_repositories_on_the_hub_with_prefixed_names_are_read(prefix: str, original: Any, tmp_path: Path):
    """hance-ai/descript-audio-codec-* and parler-tts/dac_*: a wrapper around the original, with its own config."""
    model = randomised(original.DAC(**small_kwargs("24khz")).eval())
    state = {prefix + key: value.numpy() for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type_by_sampling_freq": "24khz"}))
    codec = load_codec(tmp_path)
    pth = tmp_path / "weights.pth"
    torch.save({"state_dict": model.state_dict(), "metadata": {"kwargs": small_kwargs("24khz")}}, pth)
    assert load_codec(pth).weights_hash == codec.weights_hash
    assert load_codec(pth).config == codec.config
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no sampling_rate"):
        load_codec(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="not an echotts codec"):
        load_codec(tmp_path / "model.safetensors")


def test_training_losses_and_gradients_are_those_of_descript_audio_codec(original: Any, tmp_path: Path):
    from dac.nn.quantize import ResidualVectorQuantize  # pyright: ignore[reportMissingImports]

    torch.manual_seed(3)
    theirs = ResidualVectorQuantize(12, n_codebooks=3, codebook_size=16, codebook_dim=4, quantizer_dropout=0.0).train()
    state = {f"quantizer.{key}": value.detach().numpy() for key, value in theirs.state_dict().items()}
    from echotts.codec import CodecConfig
    from echotts.codec.published import Tensors, _bottleneck

    config = CodecConfig(latent_dim=12, n_codebooks=3, codebook_size=16, codebook_dim=4)
    params = {"bottleneck": jax.tree.map(jnp.asarray, _bottleneck(Tensors(state, "x"), config))}
    features = noise(4, 9, 12)
    z = torch.from_numpy(features).mT.requires_grad_()
    total, codes, _, commitment, codebook = theirs(z)
    weights = torch.from_numpy(noise(*total.shape, seed=5))
    ((total * weights).sum() + 0.25 * commitment + codebook).backward()

    def loss(params: Any, features: Any) -> Any:
        ours = quantize_for_training(params, features, jax.random.key(0), dropout=0.0)
        value = (ours.embeddings * weights.mT.numpy()).sum() + 0.25 * ours.commitment_loss + ours.codebook_loss
        return value, ours

    grads, ours = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, jnp.asarray(features))
    np.testing.assert_array_equal(ours.codes, codes)
    np.testing.assert_allclose(ours.embeddings, total.mT.detach(), atol=1e-5)
    np.testing.assert_allclose(ours.commitment_loss, commitment.detach(), rtol=1e-5)
    np.testing.assert_allclose(ours.codebook_loss, codebook.detach(), rtol=1e-5)
    np.testing.assert_allclose(grads[1], z.grad.mT, atol=1e-5)
    for number, stage in enumerate(theirs.quantizers):
        wanted = stage.codebook.weight.grad.numpy()
        np.testing.assert_allclose(grads[0]["bottleneck"]["quantizers"][number]["codebook"], wanted, atol=1e-5)


def test_quantizer_dropout_leaves_the_later_codebooks_out_for_its_share_of_the_batch(tiny_dac: Codec):
    features = jnp.asarray(noise(40, 3, TINY_DAC.latent_dim))
    dropped = quantize_for_training(tiny_dac.params, features, jax.random.key(1), dropout=0.5)
    used = np.zeros(40, int)
    for count in range(1, 5):
        fewer = quantize(tiny_dac.params, features, count)[0]
        used[np.abs(np.asarray(fewer - dropped.embeddings)).max((1, 2)) < 1e-5] = count
    assert set(used[:20]) == {1, 2, 3, 4}
    assert (used[20:] == 4).all()
    whole = quantize_for_training(tiny_dac.params, features, jax.random.key(1), dropout=0.0)
    assert float(dropped.commitment_loss) < float(whole.commitment_loss)


def test_embedding_codes_equals_the_quantizer_output(tiny_dac: Codec):
    embeddings, codes = quantize(tiny_dac.params, jnp.asarray(noise(2, 5, TINY_DAC.latent_dim)))
    np.testing.assert_allclose(embed(tiny_dac.params, codes), embeddings, atol=1e-6)


def test_the_first_of_equal_codebook_vectors_is_taken():
    book = jnp.asarray([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    np.testing.assert_array_equal(nearest(jnp.asarray([[[3.0, 0.1], [0.0, 0.0]]]), book), [[1, 0]])


def test_fewer_codebooks_can_be_used_at_both_ends(tiny_dac: Codec):
    audio = 0.3 * noise(1, 200)
    tokens = tiny_dac.encode_tokens(audio)
    assert tokens.codes.shape == (1, 4, 9)
    np.testing.assert_array_equal(tiny_dac.encode_tokens(audio, 2).codes, tokens.codes[:, :2])
    wanted = tiny_dac.decode(codes=tokens.codes[:, :2])
    np.testing.assert_array_equal(tiny_dac.decode(codes=tokens.codes, n_quantizers=2), wanted)
    np.testing.assert_allclose(tiny_dac.decode(tiny_dac.encode(audio, n_quantizers=2)), wanted, atol=1e-5)


def test_a_saved_dac_is_the_same_dac(tiny_dac: Codec, tmp_path: Path):
    path = tmp_path / "dac.safetensors"
    save_codec(path, tiny_dac.params, tiny_dac.config, "tiny-dac")
    loaded = load_codec(path)
    assert (loaded.config, loaded.weights_hash) == (tiny_dac.config, tiny_dac.weights_hash)


def test_options_of_the_other_family_are_rejected(tiny: Codec, tiny_dac: Codec):
    audio = noise(1, 100)
    codes = np.zeros((1, 2, 3), int)
    calls = {
        "no codebooks": [lambda: tiny.encode_tokens(audio), lambda: tiny.decode(codes=codes)],
        "no posterior": [lambda: tiny_dac.encode(audio, jax.random.key(0))],
        "no watermark": [lambda: tiny_dac.decode(codes=codes, watermark=np.zeros((1, 16), int))],
        "codebooks 1 to 4": [lambda: tiny_dac.encode(audio, n_quantizers=5)],
        "not both": [lambda: tiny_dac.decode(), lambda: tiny_dac.decode(noise(1, 3, 8), codes=codes)],
        r"codes must be in 0\.\.15": [
            lambda: tiny_dac.decode(codes=codes + 16),
            lambda: tiny_dac.decode(codes=codes - 1),
        ],
        "codes must be integers": [
            lambda: tiny_dac.decode(codes=codes[:, :0]),
            lambda: tiny_dac.decode(codes=codes[:0]),
        ],
        "lengths must be": [lambda: tiny.encode(audio, lengths=[101]), lambda: tiny.encode(audio, lengths=[1, 2])],
    }
    for words, refused in calls.items():
        for call in refused:
            with pytest.raises(ValueError, match=words) as caught:
                call()
            assert "\n" not in str(caught.value)
