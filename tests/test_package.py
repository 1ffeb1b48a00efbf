"""Building and installing: the wheel in an empty folder, and the pinned versions for pods."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import echotts
from echotts.audio import read_audio
from echotts.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
POD_EXTRAS = ("tpu", "gcs")

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Builds the wheel and installs it into a fresh environment; calls its programs in an empty folder.

    The libraries are those of this environment, through a .pth file, so that nothing is downloaded; of the checkout
    nothing is on the path, since a .pth file (of an editable install) in a folder added by another is not read.
    """
    folder = tmp_path_factory.mktemp("wheel")
    python = folder / "env" / "bin" / "python"
    empty = folder / "empty"
    empty.mkdir()

    def shell(*command: object) -> None:
        subprocess.run([*map(str, command)], check=True, cwd=ROOT, capture_output=True)

    shell(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    shell(sys.executable, "-m", "venv", "--without-pip", python.parent.parent)
    [wheel] = folder.glob("*.whl")
    shell(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel)
    [packages] = python.parent.parent.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(folder)}

    def call(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python.parent / program), *arguments]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return call


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_wheel_shows_its_help(installed: Call, command: str) -> None:
    assert installed("echotts", command, "--help").stdout.startswith(f"usage: echotts {command} ")


@pytest.mark.slow
def test_the_wheel_in_an_empty_folder_speaks_and_carries_types_and_the_public_names(installed: Call) -> None:
    assert installed("echotts", "--version").stdout == f"echotts {echotts.__version__}\n"
    assert installed("python", "-m", "echotts", "--version").stdout == f"echotts {echotts.__version__}\n"
    said = installed("echotts", "speak", "--text", "seven three", "--steps", "8").stdout
    assert said.startswith("out.wav: ")
    names = "EchoTTS, Speech, load_codec, load_published"
    code = f"import os, echotts; from echotts import {names}; print(os.path.dirname(echotts.__file__), os.getcwd())"
    package, folder = map(Path, installed("python", "-c", code).stdout.split())
    assert ROOT not in package.parents
    assert (package / "py.typed").is_file()
    assert len(read_audio(folder / "out.wav", 16_000)) > 0.3 * 16_000


def test_the_lock_pins_all_pod_requirements_within_the_ranges_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in POD_EXTRAS for line in project["optional-dependencies"][extra]]
    lines = re.findall(r"^[^\s#].*$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    pinned = dict(line.split("==") for line in lines)
    for wanted in map(Requirement, project["dependencies"] + extras):
        version = pinned.get(canonicalize_name(wanted.name))
        assert version and wanted.specifier.contains(version), f"{wanted}, locked {version}: run make lock"
    assert "libtpu" in pinned


def test_requirements_of_a_pod_are_the_package_under_the_lock() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "--constraint requirements.lock",
        f"--editable .[{','.join(POD_EXTRAS)}]",
    ]
