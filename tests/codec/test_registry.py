"""Codecs are found by id and weights hash: built in, local cache, Hub; another one is refused unless it is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from echotts.codec import Codec, find_codec, load_codec, registry, save_codec


@pytest.fixture
def tiny_file(tmp_path: Path, tiny: Codec) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_codec(path, tiny.params, tiny.config, "tiny")
    return path


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the Hub: ORG/NAME/file, with the Hub's errors."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    root = tmp_path / "hub"
    root.mkdir()

    def download(repository: str, name: str, revision: str | None = None, local_files_only: bool = False) -> str:
        if not root.exists():
            raise LocalEntryNotFoundError("the Hub cannot be reached\nand so on")
        path = root / repository / name
        if not path.exists():
            raise EntryNotFoundError(f"no {name}")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return root


def test_a_file_a_folder_and_a_hub_id_name_a_codec(tiny_file: Path, tiny: Codec, tmp_path: Path, hub: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(tiny_file, folder / "codec.safetensors")
    (hub / "org" / "name").mkdir(parents=True)
    shutil.copy(tiny_file, hub / "org" / "name" / "model.safetensors")
    for spec in (tiny_file, str(tiny_file), folder, "org/name", "hf://org/name", "org/name@main"):
        assert load_codec(spec).weights_hash == tiny.weights_hash
    assert load_codec(tiny_file).codec_id == "tiny"
    assert load_codec("org/name@main").codec_id == "org/name"
    assert load_codec(tiny_file, window_frames=3).window_frames == 3


def test_a_codec_found_nowhere_is_a_one_line_error(tmp_path: Path, hub: Path):
    (tmp_path / "empty").mkdir()
    (hub / "org" / "name").mkdir(parents=True)
    cases = {
        "missing.pth": "no such file",
        "weights/missing.pth": "no such file",
        "what is this": "no such file",
        str(tmp_path / "empty"): "no codec in this folder",
        "org/name": r"the repository has none of codec\.safetensors",
    }
    for spec, words in cases.items():
        with pytest.raises(FileNotFoundError, match=words) as caught:
            load_codec(spec)
        assert "\n" not in str(caught.value)
        assert spec in str(caught.value)
    hub.rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"the Hub cannot be reached\)"):
        load_codec("org/name")


def test_the_built_in_codec_is_found_by_id_and_hash(tiny_file: Path, tiny: Codec, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.BUILT_IN, "demo", tiny_file)
    codec = find_codec("demo", tiny.weights_hash)
    assert (codec.codec_id, codec.weights_hash) == ("demo", tiny.weights_hash)
    assert find_codec("demo", None).weights_hash == tiny.weights_hash
    with pytest.raises(ValueError, match=r"but 0000.* is required"):
        find_codec("demo", "0" * 64)


def test_an_installed_codec_is_found_by_its_hash_whatever_its_id(tiny: Codec):
    path = registry.cache_folder() / f"{tiny.weights_hash}.safetensors"
    save_codec(path, tiny.params, tiny.config, "tiny")
    assert find_codec("weights", tiny.weights_hash).weights_hash == tiny.weights_hash
    path.rename(path.with_name(f"{'0' * 64}.safetensors"))
    with pytest.raises(ValueError, match="do not match the hash in its name"):
        find_codec("weights", "0" * 64)


def test_the_hubs_codec_is_refused_when_its_weights_changed(tiny_file: Path, tiny: Codec, hub: Path):
    (hub / "org" / "name").mkdir(parents=True)
    shutil.copy(tiny_file, hub / "org" / "name" / "codec.safetensors")
    assert find_codec("org/name", tiny.weights_hash).codec_id == "org/name"
    with pytest.raises(ValueError, match="codec org/name has weights"):
        find_codec("org/name", "0" * 64)


def test_an_unknown_codec_is_refused_with_the_remedy():
    with pytest.raises(FileNotFoundError, match="--codec, or install it"):
        find_codec("weights", "0" * 64)
    with pytest.raises(FileNotFoundError, match="no codec is recorded: name one with --codec"):
        find_codec(None, None)


def test_an_explicit_codec_is_used_and_a_difference_is_logged(
    tiny_file: Path, tiny: Codec, caplog: pytest.LogCaptureFixture
):
    assert find_codec("demo", tiny.weights_hash, override=tiny_file).weights_hash == tiny.weights_hash
    assert not caplog.records
    assert find_codec("demo", "0" * 64, override=tiny_file).weights_hash == tiny.weights_hash
    assert "is not the recorded one" in caplog.text


def test_a_dac_on_the_hub_comes_with_its_config(tmp_path: Path, hub: Path):
    """descript/dac_* and hance-ai/descript-audio-codec-*: a model.safetensors without our header, and a config.json."""
    folder = hub / "org" / "dac"
    folder.mkdir(parents=True)
    save_file({"encoder.conv1.weight": np.zeros((2, 1, 7), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"sampling_rate": 24000}')
    with pytest.raises(ValueError, match="not a DAC"):  # found, and read as one
        load_codec("org/dac")
    (folder / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        load_codec("org/dac")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="not an echotts codec"):
        load_codec("org/dac")


@pytest.mark.parametrize(("name", "channels"), [("demo", 64), ("speech", 23)])
def test_the_built_in_codecs_are_small_and_have_25_latents_per_second(name: str, channels: int):
    assert registry.BUILT_IN[name].stat().st_size <= 8_000_000
    codec = load_codec(name)
    assert (codec.codec_id, codec.sample_rate, codec.hop_length, codec.latent_channels) == (name, 16000, 640, channels)
    assert find_codec(name, codec.weights_hash).weights_hash == codec.weights_hash
