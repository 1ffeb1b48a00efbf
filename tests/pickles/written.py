"""Pickles written and corrupted for the tests, and the expected results of the reader."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echotts.pickles import RestrictedPickleError


class Runs:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/echotts-was-here",)


def pickled(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert np.asarray(ours).tobytes() == theirs.tobytes()
    else:
        assert ours == theirs


def refusal(read: Any, path: Path) -> str:
    with pytest.raises(RestrictedPickleError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert not Path("/tmp/echotts-was-here").exists()
    return message


def assert_survives(read: Any, path: Path) -> None:
    message = ""
    try:
        read(path)
    except RestrictedPickleError as error:
        message = str(error)
    assert "\n" not in message
    assert not Path("/tmp/echotts-was-here").exists()
