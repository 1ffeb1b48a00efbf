"""The published README's command, as written: a published pickle without --codec, and the codec that it then takes."""

import dataclasses

import huggingface_hub
import jax
import pytest
import soundfile
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from echotts.checkpoint.interop import save_published
from echotts.cli.app import run
from echotts.cli.inference import main
from echotts.codec import CodecConfig, registry, save_codec
from echotts.codec.backbone import init_params
from tests.tiny_speaker import CONFIG, random_params

CODEC = CodecConfig(
    encoder_dim=4,
    encoder_rates=(4, 8, 10),
    latent_dim=16,
    decoder_dim=32,
    decoder_rates=(10, 8, 4),
    codebook_dim=128,
    sample_rate=8000,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with checkpoints/step_0935000.pkl in it; $HOME is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    params = random_params(dataclasses.replace(CONFIG, latent_channels=128))
    (tmp_path / "checkpoints").mkdir()
    save_published(tmp_path / "checkpoints" / "step_0935000.pkl", params, step=935_000, samples_seen=1)
    return tmp_path


@pytest.fixture
def speak(capfd, monkeypatch):
    monkeypatch.setattr("echotts.synthesis.batch.SLOW_COMPILE_S", 600.0)

    def call():
        line = "--checkpoint checkpoints/step_0935000.pkl --text Hello. --output output.wav --steps 1 --duration 1"
        with pytest.raises(SystemExit) as stop:
            run(main, line.split())
        return stop.value.code, capfd.readouterr().err

    return call


def write_codec(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_codec(path, init_params(CODEC, jax.random.key(0)), CODEC, "facebook/dacvae-watermarked")


def test_a_published_checkpoint_speaks_through_the_published_codec_from_the_hub(folder, speak, monkeypatch):
    write_codec(folder / "hub" / "weights.safetensors")
    asked = []

    def download(repository, name, **options):
        asked.append(repository)
        if (folder / "hub" / name).exists():
            return str(folder / "hub" / name)
        raise EntryNotFoundError(f"404: {name}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    code, err = speak()
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("checkpoints/step_0935000.pkl names no codec: using facebook/dacvae-watermarked")
    assert set(asked) == {"facebook/dacvae-watermarked"}
    assert soundfile.info(folder / "output.wav").frames > 0


def test_without_the_hub_the_error_says_which_file_to_copy_where(folder, speak, monkeypatch):
    def out_of_reach(repository, name, **options):
        raise LocalEntryNotFoundError("cannot connect")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", out_of_reach)
    code, err = speak()
    place = registry.cache_folder() / "facebook--dacvae-watermarked"
    assert code == 1
    assert err.splitlines()[-1].endswith(f"put its weights.pth into {place}, or name the file with --codec")
    assert not (folder / "output.wav").exists()
    write_codec(place / "weights.safetensors")
    assert speak()[0] == 0
