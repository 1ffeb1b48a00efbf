"""Reads pickles and PyTorch's zip files as data, with a small pickle interpreter that can call no foreign code.

It is not Python's unpickler with a filter. It interprets the opcodes written by picklers of protocols 2 to 5, and can
reach only the functions of two tables (`plain_names` in values.py, `torch_names` in torch.py), each of which builds an
array or a plain container. Any other name in the file is an error that names it.

Cost: at most 4 times the file's size plus 64 MiB of memory, and time linear in its size. Every object made by an opcode
is charged to an allowance (`machine.py`), as is the tree that the result unfolds to (`values.py`): a small file can
neither create many objects nor reference one so often that copying the result would cost more.
"""

from echotts.pickles.files import read_npy_pickle, read_pickle
from echotts.pickles.torch import read_torch_zip
from echotts.pickles.values import RestrictedPickleError

__all__ = ["RestrictedPickleError", "read_npy_pickle", "read_pickle", "read_torch_zip"]
