"""Common setup: a persistent compile cache, JAX on the CPU, and skipping of tests."""

import importlib.util
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

# Before any test imports jax; subprocesses inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")  # most compilations here take less than 1 s
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads spin while they wait, at the other workers' cost
# Modules that declare shapes are checked; in the readers of bytes, beartype would cost more than the tests themselves.
SOURCES = {path.relative_to(ROOT).with_suffix(""): path.read_text() for path in (ROOT / "echotts").rglob("*.py")}
install_import_hook([".".join(path.parts) for path in SOURCES if "jaxtyping" in SOURCES[path]], "beartype.beartype")
# A background job of a shell ignores Ctrl-C, and so would the processes it starts, which tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Compiles quickly (tests/compiling.py), before any test imports jax, unless marks are selected (TPU, slow)."""
    if not config.getoption("--all") and not config.getoption("-m"):
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips, with the reason, tests that this machine cannot run and, without --all or -m, slow ones."""
    reasons = {}
    if not config.getoption("--all") and "slow" not in config.getoption("-m"):
        reasons["slow"] = "takes minutes: make test-slow"
    if not config.getoption("--all") and "browser" not in config.getoption("-m"):
        reasons["browser"] = "needs Chromium: make test-browser"
    elif not any(map(shutil.which, CHROMIUM)):
        reasons["browser"] = "needs Chromium: apt-get install chromium"
    if not Path("/dev/nvidia0").exists() or os.environ["JAX_PLATFORMS"] == "cpu":
        reasons["gpu"] = "needs a GPU and JAX_PLATFORMS=cuda"
    if importlib.util.find_spec("libtpu") is None:
        reasons["tpu_compile"] = "needs the TPU compiler: pip install -e .[tpu]"
    for item in items:
        for mark, reason in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Frees compiled programs, which would add up to gigabytes, when a worker goes on to another folder."""
    if "jax" in sys.modules and (nextitem is None or nextitem.path.parent != item.path.parent):
        sys.modules["jax"].clear_caches()
