"""The command line shared by tpu.py and local.py: a verb, then flags; underscores and hyphens are equivalent."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from launch import verbs
from launch.errors import LaunchError, UsageError
from launch.logs import logs
from launch.pods import Pod, complain
from launch.settings import Settings, convert, read_settings
from launch.watch import watch

VERBS = {
    "up": "request the machines, and wait for them",
    "sync": "send the code, install its requirements, switch to it",
    "start": "check all workers, then start the command on each, detached",
    "status": "what runs on each worker, and its last log line",
    "logs": "the end of the logs (--follow to keep reading)",
    "stop": "SIGTERM, wait for the checkpoint, SIGKILL",
    "down": "stop, and release the machines",
    "watch": "up, sync and start; repeat whenever the machines or the run are lost",
}
NOT_HERE = {  # settings that a program does not have as flags
    "tpu.py": {"env"},
    "local.py": {
        *("env", "name", "project", "zone", "accelerator_type", "runtime_version", "spot", "create_flags", "ssh_flags"),
        *("base", "hf_token_file", "wait_minutes", "lost_s", "max_skew_s"),
    },
}

MakePod = Callable[[argparse.Namespace, Settings], Pod]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help lists the flags)")


def main(prog: str, purpose: str, make_pod: MakePod, more: Callable[[argparse.ArgumentParser], None]) -> NoReturn:
    """Runs a verb and exits: 0 success, 1 failure, 2 usage error, 130 Ctrl-C. `more` adds program-specific flags."""
    code = 0
    try:
        arguments = _parse(prog, purpose, more, sys.argv[1:])
        flags = {key.name: getattr(arguments, key.name, None) for key in fields(Settings)}
        _do(arguments, make_pod(arguments, read_settings(arguments.config, flags)))
    except LaunchError as error:
        code = 2 if isinstance(error, UsageError) else 1
        complain(f"launch: {error}")
    except KeyboardInterrupt:
        code = 130
        complain("launch: interrupted; started processes keep running")
    except BrokenPipeError:
        code = 141
    sys.exit(code)


def _do(arguments: argparse.Namespace, pod: Pod) -> None:
    if arguments.verb == "logs":
        logs(pod, workers=arguments.worker, lines=arguments.lines, follow=arguments.follow)
    elif arguments.verb == "start":
        verbs.start(pod, dashboard=arguments.dashboard)
    elif arguments.verb == "watch":
        watch(pod)
    else:
        getattr(verbs, arguments.verb)(pod)


def _parse(
    prog: str, purpose: str, more: Callable[[argparse.ArgumentParser], None], argv: Sequence[str]
) -> argparse.Namespace:
    width = max(map(len, VERBS))
    parser = _Parser(
        prog=prog,
        description=purpose + "\n\nverbs:\n" + "\n".join(f"  {verb:<{width}}  {line}" for verb, line in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    parser.add_argument("--config", metavar="FILE", help="ini file with sections [launch] and [env]; flags override it")
    parser.add_argument(
        "--dry_run", action="store_true", help="print commands that would change something instead of running them"
    )
    parser.add_argument("--worker", default="all", metavar="N", help="logs: of one worker (default: all)")
    parser.add_argument("--lines", type=int, default=40, metavar="N", help="logs: number of last lines (default: 40)")
    parser.add_argument("--follow", action="store_true", help="logs: keep printing new lines")
    parser.add_argument("--dashboard", action="store_true", help="start: also the dashboard, on worker 0")
    more(parser)
    _add_settings(parser, NOT_HERE[prog.rsplit("/", 1)[-1]])
    return parser.parse_args([_underscored(word) for word in argv])


def _add_settings(parser: argparse.ArgumentParser, left_out: set[str]) -> None:
    group = parser.add_argument_group("settings, also possible in the file")
    for key in fields(Settings):
        if key.name in left_out:
            continue
        kind = type(key.default)
        default = {True: "yes", False: "no", "": "none"}.get(key.default, key.default)

        def read(text: str, kind: Any = kind, name: str = key.name) -> Any:
            return convert(f"--{name}", text, kind)

        group.add_argument(
            f"--{key.name}",
            type=read,
            metavar={bool: "yes|no", int: "N", float: "N"}.get(kind, "TEXT"),
            help=f"{key.metadata['help']} (default: {default})".replace("%", "%%"),
            **({"nargs": "?", "const": True} if kind is bool else {}),
        )


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("-", "_").replace("__", "--", 1) + equals + value
