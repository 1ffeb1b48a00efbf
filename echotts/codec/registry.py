"""Finding codecs: the built-in one, files and folders, the local cache, the Hugging Face Hub.

Checkpoints and datasets identify a codec by id and weights hash (`find_codec`); users give a spec (`load_codec`).
"""

import contextlib
import logging
import zipfile
from pathlib import Path

from echotts.codec.codec import Codec
from echotts.codec.location import BUILT_IN, HUB_ID, locate_codec
from echotts.codec.published import read_hub_layout, read_published
from echotts.codec.weights import is_own_format, read_codec
from echotts.files import cache_root
from echotts.rundir.layout import CHECKPOINTS, STEP

log = logging.getLogger(__name__)

NAMES = ("codec.safetensors", "weights.safetensors", "model.safetensors", "weights.pth")  # tried in this order


def load_codec(spec: str | Path, window_frames: int | None = None) -> Codec:
    """Loads the codec named by `spec`: a built-in one, a .pth or .safetensors file, a folder with one, or a Hub id.

    DACVAE and DAC are distinguished by the file's contents. A codec training's run directory, or one of its step_*
    folders, gives the EMA weights of its newest checkpoint. A Hub id is ORG/NAME or ORG/NAME@REVISION, for example
    descript/dac_44khz, hance-ai/descript-audio-codec-24khz or facebook/dacvae-watermarked; files are kept in the Hub's
    own cache. The codec id is the spec for built-in and Hub codecs, the id in the header for .safetensors, and the
    file's stem for .pth. Raises FileNotFoundError if nothing matches, ValueError if the file is damaged, hostile or not
    a supported codec.
    """
    found = locate_codec(spec)
    if isinstance(found, tuple):
        repository, revision = found
        return _load_file(_from_hub(repository, revision), window_frames, codec_id=repository)
    if found.is_dir() and ((found / CHECKPOINTS).is_dir() or STEP.fullmatch(found.name)):
        from echotts.codec.training.checkpointed import read_run

        return Codec(*read_run(found), found.resolve().name, window_frames)
    codec_id = str(spec) if spec in BUILT_IN else None
    return _load_file(_in_folder(found) if found.is_dir() else found, window_frames, codec_id)


def find_codec(
    codec_id: str | None, weights_hash: str | None, override: str | Path | None = None, window_frames: int | None = None
) -> Codec:
    """Finds the codec that a checkpoint or dataset was made with, and verifies it by the hash of its weights.

    Searches the built-in codecs, the local cache and, if the id is a Hub id, the Hub. `override` names a codec to use
    regardless of its hash; a mismatch is logged as a warning. Raises FileNotFoundError if the codec is nowhere to be
    found, ValueError if a codec of that name has different weights.
    """
    if override is not None:
        codec = load_codec(override, window_frames)
        if weights_hash and codec.weights_hash != weights_hash:
            log.warning("codec %s is not the recorded one (%s): output may sound wrong", override, codec_id)
        return codec
    if weights_hash and (path := cache_folder() / f"{weights_hash}.safetensors").exists():
        codec = _load_file(path, window_frames)
        if codec.weights_hash == weights_hash:
            return codec
        raise ValueError(f"{path}: its weights do not match the hash in its name: delete it")
    if not codec_id:
        raise FileNotFoundError("no codec is recorded: name one with --codec")
    if codec_id not in BUILT_IN and not HUB_ID.fullmatch(codec_id):
        raise FileNotFoundError(
            f"codec {codec_id} ({_short(weights_hash)}) is neither built in nor in {cache_folder()}: name its file "
            "with --codec, or install it with `echotts codec convert FILE --install`"
        )
    codec = load_codec(codec_id, window_frames)
    if weights_hash and codec.weights_hash != weights_hash:
        raise ValueError(
            f"codec {codec_id} has weights {_short(codec.weights_hash)}, but {_short(weights_hash)} is required: "
            "name the right codec with --codec"
        )
    return codec


def cache_folder() -> Path:
    """The user's codec cache: {weights hash}.safetensors, and folders ORG--NAME that replace downloads from the Hub."""
    return cache_root() / "codecs"


def _load_file(path: Path, window_frames: int | None, codec_id: str | None = None) -> Codec:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix in (".pth", ".pt") or zipfile.is_zipfile(path):
        params, config = read_published(path)
        return Codec(params, config, codec_id or path.stem, window_frames)
    if not is_own_format(path) and path.with_name("config.json").exists():
        params, config = read_hub_layout(path)
        return Codec(params, config, codec_id or path.stem, window_frames)
    params, config, name = read_codec(path)
    return Codec(params, config, codec_id or name, window_frames)


def _in_folder(folder: Path) -> Path:
    if name := _choose([path.name for path in folder.iterdir() if path.is_file()]):
        return folder / name
    raise FileNotFoundError(f"{folder}: no codec in this folder: add a codec.safetensors or a weights.pth")


def _choose(names: list[str]) -> str | None:
    """The codec among these file names: one with a known name, or the only file with a known suffix."""
    for name in NAMES:
        if name in names:
            return name
    for suffix in (".safetensors", ".pth"):
        candidates = [name for name in names if name.endswith(suffix)]
        if len(candidates) == 1:
            return candidates[0]
    return None


def _from_hub(repository: str, revision: str | None) -> Path:
    """The codec's file in the Hub's cache, downloaded if needed; without a connection, the cached one.

    A folder ORG--NAME in `cache_folder` takes precedence: without access to the Hub, a user can put the file there.
    """
    by_hand = cache_folder() / repository.replace("/", "--")
    if by_hand.is_dir():
        return _in_folder(by_hand)
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    def download(name: str, offline: bool) -> Path:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=offline))

    failure: Exception | None = None
    for name in NAMES:
        offline = isinstance(failure, LocalEntryNotFoundError)  # tried once: failing takes many seconds
        try:
            path = download(name, offline)
            if path.suffix == ".safetensors" and not is_own_format(path):
                with contextlib.suppress(EntryNotFoundError):
                    download("config.json", offline)  # config.json holds the sample rate
            return path
        except LocalEntryNotFoundError as error:  # the Hub is unreachable and this file is not cached
            failure = failure or error
        except EntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            failure = error
            break
    reason = str(failure).strip().splitlines()[0] if failure else f"the repository has none of {', '.join(NAMES)}"
    message = (
        f"codec {repository}: not cached, and the download from the Hub failed ({reason}): put its weights.pth into "
        f"{by_hand}, or name the file with --codec"
    )
    raise FileNotFoundError(message) from failure


def _short(weights_hash: str | None) -> str:
    return weights_hash[:12] if weights_hash else "weights unknown"
