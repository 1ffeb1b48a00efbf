"""Recordings to tokens and back: files of both families, restored audio, reading and writing .dac, hostile files."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from echotts.codec import Codec, Encoded, Tokens, load_encoded, save_encoded
from echotts.codec.sound import LoudnessMeter, SoundFile
from echotts.codec.unpadded import decode_chunk
from tests.codec import descript
from tests.codec.conftest import TINY_DAC, noise
from tests.codec.test_sound import speech_like

SUFFIXES = {"tiny": (".npz", ".safetensors"), "tiny_dac": (".npz", ".safetensors", ".dac")}


@pytest.fixture(params=["tiny", "tiny_dac"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return request.getfixturevalue(request.param)


def record(path: Path, channels: int, samples: int, rate: int) -> np.ndarray:
    audio = speech_like(channels, samples)
    soundfile.write(path, audio.T, rate, subtype="FLOAT")
    return audio


def loudness(audio: np.ndarray, rate: int) -> float:
    meter = LoudnessMeter(rate, len(audio))
    meter.push(audio)
    return meter.loudness()


@pytest.mark.parametrize(("channels", "rate"), [(1, 8000), (2, 44100), (8, 192000)])
def test_decompressing_restores_loudness_rate_length_and_channels(
    codec: Codec, channels: int, rate: int, tmp_path: Path
):
    recording = tmp_path / "in.wav"
    audio = record(recording, channels, rate + 123, rate)
    compressed = codec.compress(recording)
    assert len(compressed.tokens) == channels
    for suffix in SUFFIXES[codec.codec_id.replace("-", "_")]:
        path = tmp_path / f"tokens{suffix}"
        save_encoded(path, compressed)
        np.testing.assert_array_equal(codec.load_tokens(path), compressed.tokens)
        restored, restored_rate = codec.decompress(path)
        assert restored_rate == rate
        assert restored.shape == audio.shape
        if rate == 8000:  # the codec's rate: nothing is resampled
            assert abs(loudness(restored, rate) - loudness(audio, rate)) < 0.1
        output = tmp_path / f"out{suffix}.flac"
        assert codec.decompress_to_file(compressed, output) == audio.shape[1]
        assert SoundFile(output).channels == channels


def test_a_file_is_encoded_as_its_channels_are_by_themselves(codec: Codec, tmp_path: Path):
    audio = record(tmp_path / "in.wav", 3, 70001, 8000)
    encoded = codec.encode_file(tmp_path / "in.wav")
    for channel, samples in enumerate(audio):
        if isinstance(encoded, Tokens):
            alone = codec.encode_tokens(samples[None])
            np.testing.assert_array_equal(encoded.codes[channel], alone.codes[0])
            np.testing.assert_allclose(encoded.embeddings[channel], alone.embeddings[0], atol=1e-5)
        else:
            np.testing.assert_allclose(encoded[channel], codec.encode(samples[None])[0], atol=1e-5)
    tokens = encoded.codes if isinstance(encoded, Tokens) else encoded
    codec.save_tokens(tmp_path / "tokens.npz", tokens)
    np.testing.assert_array_equal(codec.load_tokens(tmp_path / "tokens.npz"), tokens)
    decoded = codec.decode(codes=tokens) if isinstance(encoded, Tokens) else codec.decode(tokens)
    codec.save_audio(tmp_path / "out.wav", decoded)
    assert soundfile.info(tmp_path / "out.wav").channels == 3


def test_compressing_in_windows_of_any_length_gives_the_same_tokens(codec: Codec, tmp_path: Path):
    record(tmp_path / "in.wav", 2, 9001, 8000)
    wanted = codec.compress(tmp_path / "in.wav").tokens
    for width in (1, 64):
        other = Codec(codec.params, codec.config, codec.codec_id, window_frames=width)
        np.testing.assert_allclose(other.compress(tmp_path / "in.wav").tokens, wanted, atol=1e-5)


def test_silence_stays_silent(codec: Codec, tmp_path: Path):
    soundfile.write(tmp_path / "in.wav", np.zeros(4000), 8000)
    compressed = codec.compress(tmp_path / "in.wav")
    assert compressed.loudness_lufs == -70
    assert np.abs(codec.decompress(compressed)[0]).max() < 1


def test_fewer_codebooks_are_kept_or_used(tiny_dac: Codec, tmp_path: Path):
    record(tmp_path / "in.wav", 1, 8000, 8000)
    whole, fewer = tiny_dac.compress(tmp_path / "in.wav"), tiny_dac.compress(tmp_path / "in.wav", n_quantizers=2)
    np.testing.assert_array_equal(fewer.tokens, whole.tokens[:, :2])
    np.testing.assert_array_equal(tiny_dac.decompress(whole, 2)[0], tiny_dac.decompress(fewer)[0])


@pytest.fixture(scope="module")
def dac_file() -> Any:
    """descript-audio-codec's own reader and writer of .dac."""
    pytest.importorskip("torch")
    if not descript.installed():
        pytest.skip("needs descript-audio-codec: make bench-env")
    descript.dac_module()
    from dac.model.base import DACFile  # pyright: ignore[reportMissingImports]

    return DACFile


def test_dac_files_are_those_of_descript_audio_codec(tiny_dac: Codec, dac_file: Any, tmp_path: Path):
    import torch

    codes = np.random.default_rng(0).integers(0, 16, (2, 4, 120))
    encoded = Encoded(tokens=codes, sample_rate=44100, original_length=3900, loudness_lufs=-23.5)
    save_encoded(tmp_path / "ours.dac", encoded)
    read = dac_file.load(tmp_path / "ours.dac")
    np.testing.assert_array_equal(read.codes, codes)
    assert (read.padding, read.chunk_length, read.channels, read.sample_rate) == (True, 120, 2, 44100)
    theirs = dac_file(
        codes=torch.from_numpy(codes),
        chunk_length=60,
        original_length=1200,
        input_db=torch.tensor([-20.0]),
        channels=2,
        sample_rate=8000,
        padding=False,
        dac_version="1.0.0",
    )
    theirs.save(tmp_path / "theirs.dac")
    loaded = load_encoded(tmp_path / "theirs.dac")
    np.testing.assert_array_equal(loaded.tokens, codes)
    assert (loaded.chunk_length, loaded.original_length, loaded.loudness_lufs) == (60, 1200, -20.0)
    audio, rate = tiny_dac.decompress(tmp_path / "theirs.dac")
    assert (audio.shape, rate) == ((2, 1200), 8000)


def test_chunks_are_decoded_without_padding_as_descript_audio_codec_does(dac_file: Any):
    import torch

    from echotts.codec.published import _params
    from tests.codec.test_dac import randomised

    kwargs = {"encoder_dim": 4, "encoder_rates": [2, 3], "latent_dim": 12, "decoder_dim": 16, "decoder_rates": [3, 2]}
    kwargs |= {"n_codebooks": 2, "codebook_size": 16, "codebook_dim": 3, "sample_rate": 8000}
    torch.manual_seed(0)
    model = randomised(descript.dac_module().DAC(**kwargs).eval())
    from echotts.codec.published import config_from_kwargs

    config = config_from_kwargs(kwargs, "x")
    params = _params({key: value.numpy() for key, value in model.state_dict().items()}, config, "x")
    codes = np.random.default_rng(0).integers(0, 16, (1, 2, 60))
    model.padding = False
    with torch.inference_mode():
        wanted = model.decode(model.quantizer.from_codes(torch.from_numpy(codes))[0])[:, 0]
    np.testing.assert_allclose(decode_chunk(params, config, codes.astype(np.int32)), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="a chunk of 3 frames"):
        decode_chunk(params, config, codes[:, :, :3].astype(np.int32))


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/owned",)


def test_hostile_and_damaged_files_are_one_line(tiny_dac: Codec, tiny: Codec, tmp_path: Path):
    good = {"codes": np.zeros((1, 4, 3), np.uint16)}
    about = {"input_db": np.float32([-20]), "original_length": 70, "sample_rate": 8000, "chunk_length": 3}
    about |= {"channels": 1, "padding": True, "dac_version": "1.0.0"}

    def dac(**changes: Any) -> bytes:
        path = tmp_path / "made.npy"
        np.save(path, np.array(good | {"metadata": about | changes}, dtype=object), allow_pickle=True)
        return path.read_bytes()

    def packed(**arrays: Any) -> bytes:
        np.savez_compressed(tmp_path / "made.npz", **arrays)
        return (tmp_path / "made.npz").read_bytes()

    def npz(**arrays: Any) -> bytes:
        np.savez(tmp_path / "made.npz", **arrays)
        return (tmp_path / "made.npz").read_bytes()

    (tmp_path / "good.dac").write_bytes(dac())
    assert tiny_dac.decompress(tmp_path / "good.dac")[0].shape == (1, 70)
    cases: list[tuple[str, bytes, str]] = [
        ("dac", dac(evil=Evil()), "posix.system"),
        ("dac", pickle.dumps(Evil()), "damaged"),
        ("dac", dac()[:200], "damaged"),
        ("dac", b"", "empty"),
        ("dac", dac(dac_version="9"), "only 1.0.0"),
        ("dac", dac(channels=2), "gives 2 channels"),
        ("dac", dac(original_length=1 << 60), "original_length must be"),
        ("dac", dac(original_length="x"), "cannot be read"),
        ("dac", dac(sample_rate=0), "sample_rate must be"),
        ("dac", dac(padding=False, chunk_length=0), "chunk_length must be"),
        ("npz", npz(codes=np.array([{}], dtype=object)), "cannot be read"),
        ("npz", npz(codes=np.zeros((1, 4, 3), np.uint16), latents=np.zeros((1, 3, 8))), "both"),
        ("npz", npz(other=np.zeros(3)), "neither"),
        ("npz", packed(codes=np.zeros((1, 4, 1 << 20), np.uint16)), "unpacks to .* more than 8 times its size"),
        ("npz", npz(latents=np.full((1, 2, 8), np.nan)), "not finite"),
        ("npz", npz(codes=np.zeros((4, 3), np.uint16)), "tokens must be"),
        ("npz", npz(codes=np.zeros((1, 4, 0), np.uint16)), "tokens must be"),
        ("npz", npz(codes=np.zeros((1, 4, 3), np.uint16), sample_rate=np.array("x")), "sample_rate"),
        ("npz", npz(codes=np.zeros((1, 4, 3), np.uint16))[:150], "cannot be read"),
        ("npz", b"PK", "cannot be read"),
        ("safetensors", b"PK", "cannot be read"),
        ("npz", npz(codes=np.full((1, 4, 3), 16, np.uint16)), "has 4 of 16"),
        ("npz", npz(codes=np.zeros((1, 5, 3), np.uint16)), "5 codebooks"),
        ("npz", npz(latents=np.zeros((1, 3, 8), np.float32)), "are latents, which codec tiny-dac cannot decode"),
    ]
    for suffix, content, words in cases:
        path = tmp_path / f"bad.{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words) as caught:
            tiny_dac.load_tokens(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    save_file({"codes": np.zeros((1, 4, 3), np.uint16)}, tmp_path / "bad.safetensors", {"sample_rate": "many"})
    with pytest.raises(ValueError, match="cannot be read"):
        load_encoded(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="are codes, which codec tiny cannot decode"):
        tiny.load_tokens(tmp_path / "good.dac")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_encoded(tmp_path / "missing.npz")
    with pytest.raises(ValueError, match="unknown suffix"):
        load_encoded(tmp_path / "tokens.pt")
    with pytest.raises(ValueError, match=r"\.dac holds DAC codes only"):
        tiny.save_tokens(tmp_path / "x.dac", noise(1, 3, 5))
    assert not Path("/tmp/owned").exists()


def test_tokens_of_other_weights_are_refused(tiny_dac: Codec, tmp_path: Path):
    tiny_dac.save_tokens(tmp_path / "tokens.npz", np.zeros((1, 4, 3), int))
    other = Codec(tiny_dac.params | {"decoder": {**tiny_dac.params["decoder"], "snake": noise(4)}}, TINY_DAC, "other")
    with pytest.raises(ValueError, match="the tokens are from tiny-dac"):
        other.load_tokens(tmp_path / "tokens.npz")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_corrupted_dac_files_fail_in_one_line_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = tmp_path_factory.mktemp("dac") / "x.dac"
    encoded = Encoded(tokens=np.arange(24).reshape(1, 4, 6), sample_rate=8000, original_length=99)
    save_encoded(path, encoded)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    failure = None
    try:
        load_encoded(path)
    except ValueError as error:
        failure = error
    assert failure is None or "\n" not in str(failure)


def test_memory_does_not_hold_the_recording(tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Blocks are processed one by one: none is requested before the tokens of the last are collected."""
    record(tmp_path / "in.wav", 1, 400000, 8000)
    largest = 0
    real = SoundFile.blocks

    def watched(self: SoundFile, rate: int | None = None) -> Any:
        nonlocal largest
        for block in real(self, rate):
            largest = max(largest, block.shape[1])
            yield block

    monkeypatch.setattr(SoundFile, "blocks", watched)
    seconds: list[float] = []
    tiny.compress(tmp_path / "in.wav", loudness=None, progress=seconds.append)
    assert largest <= 1 << 16
    assert sum(seconds) == pytest.approx(50)
