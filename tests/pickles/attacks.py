"""Files that need far more memory or time than their size; the name of each describes it."""

import io
import struct
import zipfile
from collections.abc import Callable

HEAD = b"\x80\x04"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"


def repeated(opcodes: bytes, size: int, before: bytes = b"(", after: bytes = b"t.") -> bytes:
    """A pickle of `size` bytes that is almost all the same opcodes."""
    return HEAD + before + opcodes * (size // len(opcodes)) + after


def nested(make: Callable[[bytes], bytes], levels: int) -> bytes:
    """Each level references the one below twice or more, through the memo: exponential when unfolded."""
    stream = b"]\x94"
    for level in range(levels):
        stream += make(b"h" + bytes([level])) + b"\x94"
    return HEAD + stream + b"."


def text(content: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content


def colliding(size: int, step: int) -> bytes:
    """Integer keys that Python's dict looks for in the same places."""
    pairs = b"".join(b"\x8a\x10" + (n * step).to_bytes(16, "little") + b"N" for n in range(size // 19))
    return HEAD + b"}(" + pairs + b"u."


def shared_argument(call: bytes, size: int) -> bytes:
    """One long tuple as the arguments of many calls."""
    return HEAD + b"(" + b"N" * (size // 2) + b"t\x94(" + call * (size // 2 // len(call)) + b"t."


def pickles(size: int) -> dict[str, bytes]:
    """Name -> a pickle of about `size` bytes (the nested ones are small)."""
    long_tuple = b"(" + b"K\x01" * (size // 4) + b"t\x94"
    big_bytes = b"B" + struct.pack("<I", size // 2) + bytes(size // 2) + b"\x94"
    boolean = b"cnumpy\ndtype\nX\x02\0\0\0b1\x85R\x94cnumpy._core.numeric\n_frombuffer\n\x94"
    return {
        "empty dicts": repeated(b"}", size),
        "empty lists": repeated(b"]", size),
        "empty sets": repeated(b"\x8f", size),
        "dicts of one": repeated(b"}NNs", size),
        "lists of one": repeated(b"]Na", size),
        "nothing": repeated(b"N", size),
        "marks": HEAD + b"(" * size + b".",
        "one-tuples": repeated(b"N\x85", size),
        "deep tuples": HEAD + b"N" + b"\x85" * size + b".",
        "small integers": repeated(b"K\x01", size),
        "floats": repeated(b"G" + bytes(8), size),
        "short texts": repeated(b"\x8c\x01a", size),
        "wide texts": repeated(text("\U0001f600".encode() + b"a" * 1000), size),
        "one wide text": HEAD + text("\U0001f600".encode() + b"a" * size) + b".",
        "long integers": repeated(b"\x8a\xff" + b"\x7f" * 255, size),
        "big memo": repeated(b"N\x94", size),
        "sparse memo": repeated(b"Nr\xff\xff\xff\x7f", size),
        "memo from the end": HEAD + b"".join(b"Nr" + struct.pack("<I", size - n) for n in range(size // 6)) + b".",
        "many lines": repeated(b"cnumpy\ndtype\n", size),
        "unfinished lines": repeated(b"c" + b"a" * 255, size),
        "records": repeated(b"coptax\nA\n", size),
        "record instances": HEAD + b"coptax\nA\n\x94(" + b"h\x00)R" * (size // 4) + b"t.",
        "arrays without a value": HEAD + EMPTY_ARRAY + b"\x94(" + b"h\x00" * (size // 2) + b"t.",
        "frames": repeated(b"\x95" + bytes(8), size),
        "colliding keys 2**61 - 1": colliding(size, 2**61 - 1),
        "colliding keys 2**32": colliding(size, 2**32),
        "colliding keys 2**20": colliding(size, 2**20),
        "small keys": HEAD + b"}("
        + b"".join(b"M" + struct.pack("<H", n * 64 % 65536) + b"N" for n in range(size // 4)) + b"u.",
        "tuples as keys": HEAD + long_tuple + b"}" + b"h\x00Ns" * (size // 8) + b".",
        "names of shared text": HEAD + text(b"optax." + b"A" * (size // 2)) + b"\x94("
        + b"h\x00h\x00\x93" * (size // 10) + b"t.",
        "calls with a shared tuple": shared_argument(b"cnumpy._core.multiarray\n_reconstruct\nh\x00R", size),
        "records with a shared tuple": shared_argument(b"coptax\nA\nh\x00\x81", size),
        "lists of a shared tuple": HEAD + long_tuple + b"(" + b"]h\x00a" * (size // 8) + b"t.",
        "one array in many places": HEAD + big_bytes + b"(" + b"h\x00" * (size // 4) + b"t.",
        "booleans of shared bytes": HEAD + big_bytes + boolean
        + b"(h\x00h\x01\x8a\x04" + struct.pack("<I", size // 2) + b"\x85X\x01\0\0\0Ct\x94"
        + b"(" + b"h\x02h\x03R" * 1000 + b"t.",
        "long keys to many leaves": HEAD + b"}" + text(b"k" * (size // 2)) + b"}(" + b"".join(
            b"\x8c\x05%05dN" % n for n in range(size // 16)) + b"us.",
        "lists doubled": nested(lambda below: b"](" + below * 2 + b"e", 60),
        "tuples doubled": nested(lambda below: below * 2 + b"\x86", 60),
        "dicts doubled": nested(lambda below: b"}(\x8c\x01a" + below + b"\x8c\x01b" + below + b"u", 60),
        "tuples doubled as keys": nested(lambda below: below * 2 + b"\x86", 60)[:-1] + b"}h\x3cNs.",
        "lists tenfold": nested(lambda below: b"](" + below * 10 + b"e", 8),
        "dicts tenfold": nested(lambda below: b"}(" + b"".join(b"\x8c\x01%d" % n + below for n in range(10)) + b"u", 8),
    }  # fmt: skip


def torch_file(pickle: bytes, storages: dict[str, bytes]) -> bytes:
    """A zip file as torch.save lays it out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle)
        for key, content in storages.items():
            archive.writestr(f"a/data/{key}", content)
    return buffer.getvalue()


def tensor(kind: bytes, elements: int, shape: tuple[int, ...], strides: tuple[int, ...], key: bytes = b"0") -> bytes:
    """The opcodes of a tensor over the storage `key`."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + value.to_bytes(8, "little") for value in values) + b"t"

    storage = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(b"cpu")
    storage += b"\x8a\x08" + elements.to_bytes(8, "little") + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers(shape) + numbers(strides) + b"\x89Nt"


def torch_files(size: int) -> dict[str, bytes]:
    """Name -> a torch file of about `size` bytes, or smaller."""
    expanded = tensor(b"FloatStorage", 1, (1 << 24,), (0,)) + b"R\x94"
    whole = tensor(b"FloatStorage", size // 8, (size // 8,), (1,)) + b"R"
    truth = tensor(b"BoolStorage", 1, (1 << 26,), (0,)) + b"R"
    truths = tensor(b"BoolStorage", size // 2, (size // 2,), (1,)) + b"R"
    half = bytes(size // 2)
    entries = io.BytesIO()
    with zipfile.ZipFile(entries, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        for number in range(size // 100):
            archive.writestr(f"a/{number}", b"")
    return {
        "an expanded view": torch_file(HEAD + expanded + b".", {"0": bytes(4)}),
        "an expanded view in many places": torch_file(HEAD + expanded + b"(" + b"h\x00" * 100 + b"t.", {"0": bytes(4)}),
        "many expanded views": torch_file(HEAD + b"(" + expanded[:-1] * 20 + b"t.", {"0": bytes(4)}),
        "an endless view": torch_file(HEAD + tensor(b"FloatStorage", 1, (1 << 40,), (0,)) + b"R.", {"0": bytes(4)}),
        "an expanded view of booleans": torch_file(HEAD + b"(" + truth * 20 + b"t.", {"0": bytes(1)}),
        "a storage of many tensors": torch_file(HEAD + b"(" + whole * 1000 + b"t.", {"0": half}),
        "a storage of many booleans": torch_file(HEAD + b"(" + truths * 1000 + b"t.", {"0": half}),
        "overlapping rows": torch_file(
            HEAD + tensor(b"FloatStorage", size // 8, (size // 16, size // 16), (1, 1)) + b"R.", {"0": half}
        ),
        "one key for many storages": torch_file(
            HEAD + b"((" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0" * (size // 2)) + b"NK\x01t\x94"
            + b"h\x00Q" * 10000 + b"t.", {"0": bytes(4)},
        ),
        "many members": entries.getvalue(),
        **{f"inside: {name}": torch_file(content, {}) for name, content in pickles(size).items()},
    }  # fmt: skip
