"""The command line: flags, one-line errors, exit codes, quietness, and the list of commands."""

import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from echotts import __version__
from echotts.cli.app import Main, UsageError, choose, parse, run
from echotts.cli.main import COMMANDS, main

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Call:
    """Prints something."""

    text: str
    """What to say."""

    max_duration: float = 15.0
    """Longest speech, seconds."""

    strategy: Literal["peak", "rms"] = "peak"
    tries: Literal["auto"] | int | None = None
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.max_duration <= 0:
            raise ValueError(f"max_duration {self.max_duration} s is not above zero")


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    """`run` sets the process up; give pytest its own back."""
    root = logging.getLogger()
    handlers, level, environment = root.handlers[:], root.level, dict(os.environ)
    yield
    root.handlers[:], root.level = handlers, level
    logging.getLogger("echotts").setLevel(logging.NOTSET)
    os.environ.clear()
    os.environ.update(environment)


def outcome(main: Main, argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """Exit code, standard output and standard error of `run(main, argv)`."""
    with pytest.raises(SystemExit) as stop:
        run(main, argv)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def raising(error: BaseException) -> Main:
    def main(argv: list[str]) -> int:
        raise error

    return main


def test_flags_take_underscores_and_hyphens() -> None:
    for flag in ("--max_duration", "--max-duration"):
        assert parse(Call, ["--text", "hi", flag, "3"], prog="say").max_duration == 3


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "Missing from say: --text"),
        (["--text"], "Missing value for argument '--text'"),
        (["--text", "hi", "--speed", "3"], "Unrecognized options: --speed"),
        (["--txt", "hi"], "Unrecognized options: --txt"),
        (["--text", "hi", "--max_duration", "long"], "--max-duration|--max_duration"),
        (["--text", "hi", "--strategy", "loud"], "invalid choice 'loud'"),
        (["--text", "hi", "--tries", "soon"], r"^--tries soon: give auto or a whole number or None \(say"),
        (["--text", "hi", "--interval", "0", "x"], r"^--interval 0 x: give two numbers or None \(say"),
        (["--text", "hi", "--max_duration", "0"], r"^max_duration 0.0 s is not above zero"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse(Call, argv, prog="say")
    code, out, err = outcome(lambda rest: parse(Call, rest, prog="say") and 0, argv, capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("echotts: ")
    assert err.endswith("(say --help lists the flags)\n")


def test_a_long_wrong_value_stays_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(UsageError, match=f"Unrecognized options: --speed, {'x' * 300} "):
        parse(Call, ["--text", "hi", "--speed", "x" * 300], prog="say")
    assert os.environ["COLUMNS"] == "40"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_wrong_call_reads_the_same_on_every_terminal(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "echotts", "export", "--run-dir", "runs/x"],
        env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("echotts: Missing from echotts export: --output PATH File to write")
    assert done.stderr.count("\n") == 1


def test_help_says_what_each_flag_means_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = outcome(lambda argv: parse(Call, argv, prog="say") and 0, ["--help"], capsys)
    assert (code, err) == (0, "")
    for expected in (
        "Prints something.",
        "--max_duration FLOAT",
        "Longest speech, seconds. (default: 15.0)",
        "--debug",
    ):
        assert expected in out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ValueError("a.tar: latent has 3 channels,\n  the codec makes 64"),
            "a.tar: latent has 3 channels, the codec makes 64",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.wav"), "x.wav: no such file or directory"),
        (OSError("disk full"), "disk full"),
        (KeyError("latent"), "KeyError: 'latent' (--debug shows the traceback)"),
        (AssertionError(), "AssertionError:  (--debug shows the traceback)"),
    ],
)
def test_a_failure_is_one_line_and_exit_1(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(raising(error), [], capsys) == (1, "", f"echotts: {line}\n")


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[list[str]] = []

    def main(argv: list[str]) -> int:
        seen.append(argv)
        raise ValueError("broken")

    code, _, err = outcome(main, ["a", "--debug", "b"], capsys)
    assert code == 1
    assert seen == [["a", "b"]]
    assert "Traceback" in err
    assert err.endswith("echotts: broken\n")


def test_interruption_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(raising(KeyboardInterrupt()), [], capsys) == (130, "", "echotts: interrupted\n")


def test_the_mains_own_code_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(lambda argv: 3, [], capsys)[0] == 3
    assert outcome(lambda argv: None, [], capsys)[0] == 0


def test_our_messages_are_shown_and_those_of_libraries_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> int:
        logging.getLogger("echotts.data").info("17 samples rejected")
        logging.getLogger("orbax").warning("chatter")
        logging.getLogger("jax").error("really wrong")
        return 0

    assert outcome(main, [], capsys) == (0, "", "17 samples rejected\nreally wrong\n")
    assert "chatter" in outcome(main, ["--debug"], capsys)[2]


def test_choose_calls_the_named_command_with_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    commands: dict[str, tuple[str, Main]] = {
        "one": ("the first", lambda argv: len(argv)),
        "two": ("other", raising(OSError())),
    }
    assert choose("tool", "A tool.", commands, ["one", "a", "b"]) == 2
    assert choose("tool", "A tool.", commands, ["--help"]) == 0
    assert "one  the first" in capsys.readouterr().out
    assert choose("tool", "A tool.", commands, []) == 0
    assert "one  the first" in capsys.readouterr().out
    with pytest.raises(UsageError, match="unknown command 'three': tool has one, two"):
        choose("tool", "A tool.", commands, ["three"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_listed_command_has_help_under_its_own_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = outcome(main, [command, "--help"], capsys)
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: echotts {command} ")


def test_the_version_is_printed_and_is_the_one_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(main, ["--version"], capsys) == (0, f"echotts {__version__}\n", "")


@pytest.mark.parametrize(
    ("script", "command"),
    [("train_pretrain", "train"), ("inference", "speak"), ("monitor", "monitor"), ("disk_watchdog", "watchdog")],
)
def test_a_root_script_is_an_alias_of_its_command(
    script: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--nosuch"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 2
    assert f"(echotts {command} --help lists the flags)" in capsys.readouterr().err


def test_a_reader_that_has_enough_ends_the_command_in_silence_and_with_success() -> None:
    program = "from echotts.cli.app import run; run(lambda argv: print('line\\n' * 100_000))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_standard_streams_do_not_end_up_in_files(tmp_path: Path, closed: str) -> None:
    program = (
        "import sys\nfrom echotts.cli.app import run\n"
        "def main(argv):\n    with open(argv[0], 'wb', buffering=0) as file:\n"
        "        print('out')\n        print('err', file=sys.stderr)\n        file.write(b'whole')\n"
        "run(main, sys.argv[1:])"
    )
    call = f"'{sys.executable}' -c \"$PROGRAM\" '{tmp_path / 'file'}' {closed}"
    done = subprocess.run(["sh", "-c", call], cwd=ROOT, env=os.environ | {"PROGRAM": program}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize("home", [None, "/dev/null"])
def test_commands_work_without_a_home_or_a_writable_cache(home: str | None) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "JAX_COMPILATION_CACHE_DIR")
    }
    if home:
        environment["HOME"] = home
    program = COMPILES if home else f"import pwd; pwd.getpwuid = lambda uid: {{}}[uid]\n{COMPILES}"
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    line = "/dev/null/.cache/echotts/compiled: not a directory: the compilation cache is disabled"
    assert done.stderr == (f"{line}, so each start compiles again\n" if home else "")


COMPILES = """
import sys
from echotts.cli.app import run
def main(argv):
    import jax
    jax.jit(lambda x: x + 1)(1.0)
run(main, [])
"""


@pytest.mark.parametrize(("chosen", "kept"), [(None, ".cache/echotts/compiled"), ("here", "here")])
def test_compiled_programs_are_cached_for_the_next_process(tmp_path: Path, chosen: str | None, kept: str) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if chosen:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / chosen)
    done = subprocess.run([sys.executable, "-c", COMPILES], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / kept).glob("*-cache"))


MISSING = (
    "train --data none --run_dir run",
    "train --data broken.wav --run_dir run",
    "codec train --data none --run_dir run --output out.safetensors",
    "data prepare --source none.csv --output out",
    "data prepare --source demo --output out --codec none.pth",
    "data inspect --data none",
    "data segment --source none --output out",
    "speak --text one --speaker_ref broken.wav --output out.wav",
    "speak --text one --checkpoint none.safetensors --output out.wav",
    "export --run_dir none --output out.safetensors",
    "eval --checkpoint none",
    "eval --data none",
    "codec info --codec none.pth",
    "codec convert --input none.pth --output out.safetensors",
    "codec train --data . --init_from none.pth --run_dir run --output out.safetensors",
    "codec encode none.wav out.npy",
    "codec evaluate --data none",
)


def test_what_is_missing_is_reported_within_a_second_before_jax_is_imported(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    program = (
        "import runpy, sys, time\n"
        f"for call in {MISSING!r}:\n"
        "    sys.argv, began = ['echotts', *call.split()], time.process_time()\n"
        "    try:\n        runpy.run_module('echotts', run_name='__main__')\n"
        "    except SystemExit as stop:\n        print(stop.code, 'jax' in sys.modules, time.process_time() - began)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    said, seen = done.stderr.splitlines(), [line.split() for line in done.stdout.splitlines()]
    assert len(said) == len(seen) == len(MISSING), done.stderr
    for call, line, (code, with_jax, seconds) in zip(MISSING, said, seen, strict=True):
        assert (code, with_jax) == ("1", "False") and ("none" in line or "broken" in line), (call, line)
        assert float(seconds) < 1.0, call
