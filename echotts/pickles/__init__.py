"""Reads pickles and PyTorch's zip files as data: a small pickle machine that can call nothing.

It is not Python's unpickler with a filter. It interprets the opcodes that picklers of protocols 2 to 5 write, and the
only functions it can reach are those of two tables (`plain_names` in values.py, `torch_names` in torch.py), each of
which builds an array or a plain container. Any other name in the file is refused, and the error says which.

Cost: at most 4 times the file's size plus 64 MiB of memory, and time linear in its size. Every object that an opcode
makes is paid for from an allowance (`machine.py`), and so is the tree that the result unfolds to (`values.py`): a small
file can neither make many objects nor name one of them so often that copying the result would cost more.
"""

from echotts.pickles.files import read_npy_pickle, read_pickle
from echotts.pickles.torch import read_torch_zip
from echotts.pickles.values import RestrictedPickleError

__all__ = ["RestrictedPickleError", "read_npy_pickle", "read_pickle", "read_torch_zip"]
