"""A pod of two workers behind a fake gcloud, which runs the real worker scripts, each in its own home folder."""

import contextlib
import fcntl
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).parents[2]

# The "training": counts on from where it was until it is told to stop. MODE selects its behaviour.
TRAINING = """
import os, signal, sys, time
from pathlib import Path
mode, run_dir = sys.argv[1], Path(sys.argv[2])
asked = []
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
kept = run_dir / ("step-" + os.uname().nodename + "-" + Path.home().name)
step = int(kept.read_text()) if kept.exists() else 0
print(f"after step {step}, words {sys.argv[3:]}, greeting {os.environ.get('GREETING')!r}", flush=True)
if mode == "crash":
    sys.exit("ran into a wall")
while not asked and not (mode == "finish" and step >= 3):
    step += 1
    whole = kept.with_name(f"{kept.name}.{os.getpid()}")
    whole.write_text(str(step))
    whole.rename(kept)  # workers of local.py share the name
    time.sleep(0.05)
print(f"stopped and saved after step {step}" if asked else f"trained {step} steps", flush=True)
sys.exit(75 if asked else 0)
"""
LITTLE = "import signal\nprint('here', flush=True)\nsignal.pause()\n"
UV = f"""#!/bin/sh
echo "$PWD: $*" >>"$HOME/uv.log"
[ ! -e "$HOME/uv-fails" ] || {{ echo "no matching distribution"; exit 1; }}
[ "$1" = venv ] || exit 0
for folder in "$@"; do :; done
mkdir -p "$folder/bin" && printf '#!/bin/sh\\nexec {sys.executable} "$@"\\n' >"$folder/bin/python"
chmod +x "$folder/bin/python"
"""


MADE: list = []  # machines that have the code, which tests copy


class World:
    """The fake cloud, the repository that is sent, and the command line under test."""

    def __init__(self, folder: Path):
        self.cloud = folder / "cloud"
        self.source = folder / "source"
        self.run_dir = folder / "run"
        for path in (self.cloud / "bin", self.source, self.run_dir):
            path.mkdir(parents=True)
        self._executable("gcloud", f'#!/bin/sh\nexec {sys.executable} -S {ROOT}/tests/launch/fake_gcloud.py "$@"\n')
        self._executable("uv", UV)
        self._executable("curl", "#!/bin/sh\nexit 6\n")
        self._executable("sudo", '#!/bin/sh\nshift\nexec "$@"\n')
        self.set(workers=2, chips=4, states=[], creations=[])
        (self.source / "train_pretrain.py").write_text(TRAINING)
        (self.source / "little.py").write_text(LITTLE)
        (self.source / "pyproject.toml").write_text("[project]\n")
        (self.source / "requirements.txt").write_text("-e .\n")
        (self.source / ".gitignore").write_text("secret\n")
        self.git("init", "-q")
        self.commit()

    def _executable(self, name: str, text: str) -> None:
        path = self.cloud / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.source), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> str:
        """Commits everything; the release that sync makes of it."""
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "x")
        return self.git("rev-parse", "HEAD")[:12]

    def set(self, **facts: object) -> None:
        """Changes the state of affairs."""
        path = self.cloud / "world.json"
        with (self.cloud / "lock").open("w") as lock:  # taken by every call of the fake
            fcntl.flock(lock, fcntl.LOCK_EX)
            path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | facts))

    def call(self, *arguments: str, program: str = "tpu.py", code: int = 0) -> str:
        """Runs a verb, in this process, which is sooner; its two outputs, after the exit code was as expected."""
        script, *words = self._words(program, arguments)
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self._environment(), clear=True),
            mock.patch.object(sys, "argv", [script, *words]),
            mock.patch.object(sys, "path", [str(ROOT / "launch"), *sys.path]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            runpy.run_path(script, run_name="__main__")
        said, complained = out.getvalue(), err.getvalue()
        assert ended.value.code == code, f"exit {ended.value.code}\n{said}\n{complained}"
        if code:
            assert complained.splitlines()[-1].startswith("launch: "), complained
        return said + complained

    def start(self, *arguments: str, program: str = "tpu.py") -> subprocess.Popen[str]:
        """Runs a verb in a subprocess."""
        return subprocess.Popen(
            [sys.executable, "-S", *self._words(program, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(),
        )

    def _words(self, program: str, arguments: tuple[str, ...]) -> list[str]:
        quick = ["--poll_s", "0.1", "--backoff_s", "0.1", "--settle_s", "0.1", "--min_free_gb", "1", "--grace_s", "20"]
        own = (
            ["--name", "pod", "--zone", "z", "--wait_minutes", "0.1", "--python", "3.11"] if program == "tpu.py" else []
        )
        flags = [*own, *quick, "--source", str(self.source), "--watchdog", ""]
        return [str(ROOT / "launch" / program), arguments[0], *flags, *arguments[1:]]

    def _environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("ECHOTTS")},
            "PATH": f"{self.cloud}/bin:{os.environ['PATH']}",
            "FAKE_GCLOUD": str(self.cloud),
        }

    def command(self, mode: str = "run", *words: str) -> tuple[str, str]:
        """The --command flag of the fake training."""
        return "--command", " ".join(["train_pretrain.py", mode, str(self.run_dir), *words])

    def calls(self, *words: str) -> list[list[str]]:
        """The calls of gcloud that had all these words, oldest first."""
        path = self.cloud / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for line in lines if set(words) <= set(call := json.loads(line))]

    def home(self, worker: int) -> Path:
        return self.cloud / f"w{worker}"

    def job(self, worker: int, name: str = "pid") -> Path:
        return self.home(worker) / "echotts" / "job" / name

    def pid(self, worker: int) -> int:
        return int(self.job(worker).read_text().split()[0])

    def ready(self) -> str:
        """Machines with the code on them; the release. They are made once, by the verbs, and copied."""
        if not MADE:
            folder = tempfile.TemporaryDirectory()
            made = World(Path(folder.name))
            made.call("up", "--accelerator_type", "v4-16")
            made.call("sync")
            MADE.append((folder, made))
        [(_, made)] = MADE
        for old, new in ((made.cloud, self.cloud), (made.source, self.source)):
            shutil.rmtree(new)
            shutil.copytree(old, new, symlinks=True)
        for path in self.cloud.glob("w*/echotts/releases/*/.python"):
            path.write_text(path.read_text().replace(str(made.cloud), str(self.cloud)))
        for link in self.cloud.glob("w*/echotts/*"):
            if link.is_symlink():
                assert not link.readlink().is_absolute()
        return self.git("rev-parse", "HEAD")[:12]

    def end(self) -> None:
        for pidfile in self.cloud.glob("w*/echotts/job/*pid"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(pidfile.read_text().split()[0]), signal.SIGKILL)


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.end()


def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Waits for something to become true; fails when it does not."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
