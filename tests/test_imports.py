"""The import table of ARCHITECTURE.md: which package may import which, and what must never be imported.

Packages here are the modules and packages directly under echotts/. Imports inside functions count too.
"""

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "echotts"

OPEN_TO_ALL = {  # import nothing of ours but each other
    "config",
    "files",
    "gcs",
    "latents",
    "seeds",
    "spectrogram",
    "strict_json",
    "strict_tensors",
    "version",
    "wheels",
}
ALLOWED: dict[str, set[str]] = {  # room -> the rooms it may import, beside itself and OPEN_TO_ALL
    "config": set(),
    "files": set(),
    "gcs": set(),
    "latents": set(),
    "seeds": set(),
    "spectrogram": set(),
    "strict_json": set(),
    "strict_tensors": set(),
    "version": set(),
    "wheels": set(),
    "rundir": set(),
    "disk": {"rundir"},
    "pickles": set(),
    "text": set(),
    "audio": set(),
    "model": set(),
    "flow": set(),
    "codec": {"audio", "pickles", "rundir", "disk", "multihost", "checkpoint"},
    "data": {"text", "audio", "codec", "rundir"},
    "multihost": {"rundir"},
    "checkpoint": {"text", "pickles", "model", "rundir", "multihost"},
    "training": {"text", "rundir", "disk", "model", "flow", "data", "multihost", "checkpoint"},
    "monitor": {"rundir"},
    "synthesis": {"text", "audio", "model", "flow", "codec", "checkpoint"},
    "segment": {"audio", "evaluation"},
    "evaluation": {"text", "audio", "codec", "data", "checkpoint", "synthesis"},
    "__init__": {"checkpoint", "codec", "synthesis"},
    "__main__": {"cli"},
}
ANYTHING = {"cli"}  # parses and calls every room; no room imports it

NEVER = {"torch", "torchaudio", "transformers", "tensorflow"}  # tests and benchmarks may
NOT_IMPORTED = {"filelock", "misaki"}  # JAX does, where its compile cache has a limit; only its files are read
OPTIONAL = {
    "av": "m4a",
    "fsspec": "gcs",
    "gcsfs": "gcs",
    "aiohttp": "gcs",
    "requests": "gcs",
    "google": "gcs",
    "faster_whisper": "asr",
    "jiwer": "eval",
    "whisper_normalizer": "asr",
    "pocketsphinx": "eval",
    "resemblyzer": "eval",
    "espeakng_loader": "teachers",
    "onnxruntime": "teachers",
    "tensorboardX": "tensorboard",
}  # imported in functions only
NO_JAX = {"jax", "flax", "optax", "orbax"}
HEAVY = ("jax", "flax", "optax", "orbax", "scipy", "webdataset", "huggingface_hub")


@dataclass(frozen=True)
class Import:
    """One imported name, as `package.module.name`, with the place."""

    path: Path
    line: int
    name: str
    in_function: bool

    @property
    def room(self) -> str:
        return room_of(self.path)

    @property
    def imported_room(self) -> str | None:
        """The imported package of echotts; None for other packages."""
        parts = self.name.split(".")
        return None if parts[0] != "echotts" else parts[1] if len(parts) > 1 else "__init__"

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.name}"


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[Import]:
    """All import statements of a module; relative ones are errors, so that imports can be found with grep."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name, not a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(path, node.lineno, name, id(node) in inner)


@functools.cache  # a test reads it, none changes it
def all_imports() -> list[Import]:
    return [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path)]


def test_packages_import_only_what_the_table_allows() -> None:
    wrong = [
        str(found)
        for found in all_imports()
        if found.room not in ANYTHING
        and found.imported_room not in (None, found.room, *OPEN_TO_ALL)
        and found.imported_room not in ALLOWED.get(found.room, set())
        and found.name != "echotts.__version__"
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_has_a_line_in_the_table() -> None:
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms == set(ALLOWED) | ANYTHING


def test_the_table_in_architecture_md_is_the_tested_one() -> None:
    rows = re.findall(r"^\| `echotts/(\w+)(?:/|\.py)` \|.*\| ([^|]*) \|$", (ROOT / "ARCHITECTURE.md").read_text(), re.M)
    written = {
        room: set() if cell == "-" else set(cell.split(", ")) for room, cell in rows if room not in ("assets", "cli")
    }
    assert written == {room: imports for room, imports in ALLOWED.items() if not room.startswith("__")}


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    finished: set[str] = set()

    def visit(node: str, above: tuple[str, ...]) -> None:
        assert node not in above, f"circle: {' -> '.join((*above, node))}"
        for imported in graph.get(node, set()) - finished:
            visit(imported, (*above, node))
        finished.add(node)

    for node in graph:
        visit(node, ())


def test_the_table_has_no_circle() -> None:
    assert_no_circle(ALLOWED)


def test_no_two_modules_import_each_other_not_even_for_their_types() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }

    def module_of(name: str) -> str:
        return name if name in modules else module_of(name.rpartition(".")[0])

    graph = {
        module: {module_of(found.name) for found in all_imports() if found.path == path and found.imported_room}
        - {module}
        for module, path in modules.items()
    }
    assert_no_circle(graph)


def test_dashboard_and_watchdog_do_not_import_jax() -> None:
    rooms = {"rundir", "disk", "monitor", "gcs", "files", "config"}
    wrong = [str(found) for found in all_imports() if found.room in rooms and found.name.split(".")[0] in NO_JAX]
    assert not wrong, "\n".join(wrong)


def test_torch_and_tensorflow_are_never_imported() -> None:
    wrong = [str(found) for found in all_imports() if found.name.split(".")[0] in NEVER]
    assert not wrong, "\n".join(wrong)


def test_model_flow_codec_and_data_do_not_use_meshes() -> None:
    rooms = {"model", "flow", "codec", "data"}
    wrong = [str(found) for found in all_imports() if found.room in rooms and found.name.startswith("jax.sharding")]
    assert not wrong, "\n".join(wrong)


def test_only_these_modules_talk_to_the_network() -> None:
    allowed = {"data/remote/web.py", "data/remote/hub.py", "data/remote/opening.py", "codec/registry.py", "disk/hub.py"}
    talks = ("urllib.request", "huggingface_hub", "fsspec", "http.client", "socket.create", "requests", "httpx")
    wrong = [
        str(found)
        for found in all_imports()
        if found.room in ("data", "codec", "disk")
        and found.name.startswith(talks)
        and str(found.path.relative_to(PACKAGE)) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_extras_are_imported_only_where_they_are_used() -> None:
    wrong = [str(found) for found in all_imports() if found.name.split(".")[0] in OPTIONAL and not found.in_function]
    assert not wrong, "\n".join(wrong)


def test_pyproject_lists_exactly_the_imported_packages() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    declared = {normalised(re.split(r"[~><=\[]", line)[0]) for line in listed}
    distributions = importlib.metadata.packages_distributions()
    used = set()
    for found in all_imports():
        package = found.name.split(".")[0]
        if package in sys.stdlib_module_names or package == "echotts" or package in OPTIONAL:
            continue
        candidates = {normalised(name) for name in distributions.get(package, [package])}
        used.add(next(iter(candidates & declared), f"{package} ({found})"))
    assert used | NOT_IMPORTED == declared


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_help_does_not_import_jax() -> None:
    """All in one process, in which nothing heavy may be loaded at any time."""
    calls = [
        *([script, "--help"] for script in ("train_pretrain.py", "inference.py", "monitor.py", "disk_watchdog.py")),
        *(["echotts", *command, "--help"] for command in ([], ["codec"], ["data"], ["data", "prepare"])),
        *(["echotts", command, "--help"] for command in ("speak", "train", "plan", "export", "eval", "voice")),
    ]
    program = (
        f"import runpy, sys\n"
        f"for call in {calls!r}:\n"
        f"    sys.argv = call\n"
        f"    try:\n"
        f"        if call[0] == 'echotts':\n"
        f"            runpy.run_module('echotts', run_name='__main__', alter_sys=False)\n"
        f"        else:\n"
        f"            runpy.run_path(call[0], run_name='__main__')\n"
        f"    except SystemExit as stop:\n"
        f"        assert not stop.code, (call, stop.code)\n"
        f"    print('loaded:', call, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr == ""
    assert done.stdout.count("usage:") == len(calls)
    loaded = [line for line in done.stdout.splitlines() if line.startswith("loaded:")]
    assert loaded == [f"loaded: {call} []" for call in calls]


def test_the_metrics_format_and_the_configuration_are_read_without_jax() -> None:
    program = "import sys, echotts, echotts.config, echotts.rundir.metrics; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_speaking_loads_neither_orbax_nor_scipys_signals() -> None:
    """Each takes a second to import, which the first sentence would wait for."""
    program = (
        "import sys, echotts\n"
        "echotts.EchoTTS.load('demo').synthesize('one')\n"
        "assert not {'orbax.checkpoint', 'scipy.signal'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
