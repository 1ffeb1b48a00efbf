"""Shared by all commands: flags from typed dataclasses, one-line errors, exit codes, quiet libraries.

Exit codes: 0 success, 1 failure, 2 usage error, 130 Ctrl-C, 75 a training that was stopped by a signal before its last
step. Flags accept underscores and hyphens.
"""

import contextlib
import dataclasses
import inspect
import io
import logging
import os
import re
import select
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import tyro

from echotts.files import cache_root

Value = TypeVar("Value")
Main = Callable[[list[str]], int | None]

LOGGER = logging.getLogger(__name__)

DEBUG_HELP = "--debug shows the traceback of an error."

EXIT_ASKED_TO_LEAVE = 75  # EX_TEMPFAIL of sysexits.h: try again later; launch/answers.py reads it

_MESSAGE_LIMIT = 2000  # characters; XLA's errors can be pages long
_ENDLESS = 10_000  # columns
_UNION = re.compile(r"Error parsing (--\S+): no type matching (.+?) could be instantiated from \[(.*?)\].*")
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "FLOAT FLOAT": "two numbers"}
_QUIET = {  # read by the libraries on import; values set by the user are kept
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "NONE",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_COMPILED_BYTES = 4 * 2**30  # the least recently used entries are evicted first


class UsageError(Exception):
    """A wrong call; the message is one line, the exit code 2."""


def run(main: Main, argv: Sequence[str] | None = None) -> NoReturn:
    """Calls `main` with the arguments and exits with its code; errors become one line on standard error.

    `--debug`, anywhere among the arguments, adds the traceback and the libraries' own messages.
    """
    _open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    _quiet(debug)
    _keep_compiled()
    try:
        code = main(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        report("interrupted", debug)
    except UsageError as error:
        code = 2
        report(error, debug)
    except Exception as error:
        if _reader_left(error):
            code = 0  # `| head` has read enough; all files are complete
        else:
            code = 1
            report(error, debug)
    sys.exit(int(code or 0))


def parse(target: Callable[..., Value], argv: Sequence[str], *, prog: str, **tyro_options: Any) -> Value:
    """Fills the dataclass `target` from `argv`.

    The docstrings of the class and its fields are the help text; `--help` ends the process with exit code 0. Raises
    UsageError with a one-line message for a wrong call, including a ValueError of the dataclass's own checks.
    """
    purpose = (inspect.getdoc(target) or "").strip()
    tyro_options.setdefault("description", f"{purpose}\n{DEBUG_HELP}")
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written), _columns(None if {"-h", "--help"} & set(argv) else _ENDLESS):
            return tyro.cli(target, prog=prog, args=list(argv), use_underscores=True, **tyro_options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{_gist(written.getvalue())} ({prog} --help lists the flags)") from None


def settings_of(kind: type[Value], arguments: Any, **others: Any) -> Value:
    """A dataclass with the fields of the same names of `arguments`, and others. UsageError for invalid values."""
    names = [field.name for field in dataclasses.fields(cast(Any, kind)) if hasattr(arguments, field.name)]
    try:
        return kind(**{name: getattr(arguments, name) for name in names} | others)
    except ValueError as error:
        raise UsageError(f"--{error}") from None


def choose(prog: str, description: str, commands: Mapping[str, tuple[str, Main]], argv: Sequence[str]) -> int:
    """Calls the command named by `argv[0]`; without one, lists the commands. `commands`: name -> (help line, main).

    Raises UsageError for an unknown name.
    """
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, commands))
        print(f"usage: {prog} COMMAND [--flags]\n\n{description}\n\ncommands:")
        for command, (line, _) in commands.items():
            print(f"  {command:<{width}}  {line}")
        print(f"\n{prog} COMMAND --help lists the flags of a command. {DEBUG_HELP}")
        return 0
    if name not in commands:
        known = ", ".join(commands)
        raise UsageError(f"unknown command {name!r}: {prog} has {known} (see --help)")
    return int(commands[name][1](list(argv[1:])) or 0)


def _quiet(debug: bool) -> None:
    """Shows our log messages from INFO on and only errors of libraries; with `debug`, everything."""
    if not debug:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        if not sys.warnoptions:
            warnings.filterwarnings("ignore")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s" if debug else "%(message)s"))
    if not debug:
        handler.addFilter(lambda record: record.name.split(".")[0] == "echotts" or record.levelno >= logging.ERROR)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("echotts").setLevel(logging.DEBUG if debug else logging.INFO)


def _open_standard_streams() -> None:
    """Redirects closed standard streams (`>&-`) to /dev/null, so that no other file gets their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  (as long as the process)


def _keep_compiled() -> None:
    """Enables JAX's persistent compilation cache; JAX_COMPILATION_CACHE_DIR overrides its location."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_root() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        LOGGER.warning("%s: %s: the compilation cache is disabled, so each start compiles again", folder, reason)
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_COMPILED_BYTES))
    # The codec's window compiles in less than 1 s.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def report(error: Exception | str, debug: bool = False) -> None:
    """Prints an error as one line on standard error."""
    if debug:
        traceback.print_exc()
    message = error if isinstance(error, str) else _one_line(error)
    print(f"echotts: {message}", file=sys.stderr, flush=True)


def _one_line(error: Exception) -> str:
    """The message of `error` on one line; for a system error, file and reason."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.filename}: {error.strerror.lower()}"
    elif isinstance(error, MemoryError):
        message = f"out of memory {error}"
    else:
        message = str(error)
    message = " ".join(line.strip() for line in message.splitlines() if line.strip())
    if len(message) > _MESSAGE_LIMIT:
        message = message[:_MESSAGE_LIMIT] + " ..."
    expected = isinstance(error, UsageError | OSError | ValueError | MemoryError | ModuleNotFoundError)
    return message if expected and message else f"{type(error).__name__}: {message} (--debug shows the traceback)"


@contextlib.contextmanager
def _columns(width: int | None) -> Iterator[None]:
    """Sets the terminal width, so that long words in messages are not broken."""
    if width is None:
        yield
        return
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def _gist(box: str) -> str:
    """The content of tyro's error box on one line, without the frame and without what `--help` shows better."""
    sections = [""]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        text = line.strip("│| \t")
        if text.startswith(("╭", "╰")):
            continue
        if text and not text.strip("─-"):
            sections.append("")
        else:
            sections[-1] += f" {text}"
    if "╭" not in box:
        del sections[0]  # without frames, the box's title is a section of its own
    said = [re.sub(r"^Error parsing \w+: ", "", " ".join(section.split())) for section in sections]
    said = [_UNION.sub(_unlike, text) for text in said if text and not text.startswith(("For full", "Argument help"))]
    return "; ".join(said) or "wrong call"


def _unlike(found: re.Match[str]) -> str:
    """What was given for a flag of several types, and what may be: "--duration soon: give auto or a number"."""
    flag, kinds, given = found.groups()
    names = re.sub(r"[{}]", "", kinds).replace(",", "|").split("|")
    kinds = " or ".join(_KINDS.get(name, name) for name in sorted(names, key="None".__eq__))
    value = given.replace("', '", " ").strip("'\"")
    return f"{flag} {value}: give {kinds}"


def _reader_left(error: Exception) -> bool:
    """Whether standard output was closed (`| head`); if so, redirects it so that the exit is silent."""
    if not isinstance(error, BrokenPipeError):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
