"""descript-audio-codec 1.0.0 from PyPI, without its imports for files and training."""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any


def installed() -> bool:
    """Whether it is installed, by `make bench-env` without most of its dependencies (protobuf 3.19, torchaudio)."""
    return importlib.util.find_spec("dac") is not None and importlib.util.find_spec("einops") is not None


def dac_module() -> Any:
    """The package's module of models: Encoder, Decoder, DAC."""
    import torch

    package = importlib.util.find_spec("dac")
    if package is None or package.origin is None:
        sys.exit("descript-audio-codec is not installed: make bench-env")
    root = package.origin.removesuffix("/__init__.py")
    for name, path in (("dac", root), ("dac.nn", f"{root}/nn"), ("dac.model", f"{root}/model")):
        module = types.ModuleType(name)
        module.__path__ = [path]
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=package.origin, is_package=True)
        sys.modules[name] = module
    audiotools, ml = types.ModuleType("audiotools"), types.ModuleType("audiotools.ml")
    vars(audiotools).update(AudioSignal=object, ml=ml)
    vars(ml).update(BaseModel=torch.nn.Module)
    sys.modules |= {"audiotools": audiotools, "audiotools.ml": ml}
    return importlib.import_module("dac.model.dac")
