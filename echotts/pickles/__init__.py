"""Reads pickles and PyTorch's zip files as data: a small pickle machine that can call nothing.

It is not Python's unpickler with a filter. It interprets the opcodes itself, and the only functions it can reach are
those of two tables (`plain_names` in values.py, `_TORCH` in files.py), each of which builds an array or a plain
container. Any other name in the file is refused, and the error says which.

Formats: pickle protocols 0 to 5 (docs.python.org, pickletools), and what torch.save writes since PyTorch 1.6.
"""

from echotts.pickles.files import read_pickle, read_torch_zip
from echotts.pickles.values import RestrictedPickleError

__all__ = ["RestrictedPickleError", "read_pickle", "read_torch_zip"]
