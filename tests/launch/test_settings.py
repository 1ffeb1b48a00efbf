"""Flags, the configuration file, and validation before any call."""

import subprocess
import sys

import pytest

from launch.errors import UsageError
from launch.settings import Settings, read_settings, slice_of
from tests.launch.conftest import ROOT


def call(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "launch/tpu.py", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": "/nonexistent"}, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def test_flags_go_before_the_file_and_the_file_before_the_defaults(tmp_path) -> None:
    file = tmp_path / "pod.ini"
    file.write_text(
        "[launch]\nzone = us-central2-b\naccelerator_type = v4-64\nspot = yes\ngrace_s = 90\n"
        "command = train_pretrain.py --preset 1.3b\n  --data 'a b' --percent 50%\n[env]\nHF_HOME = /mnt/hf\n"
    )
    settings = read_settings(str(file), {"grace_s": 60, "zone": None})
    assert (settings.zone, settings.spot, settings.grace_s, settings.name) == ("us-central2-b", True, 60, "echotts")
    assert settings.command == "train_pretrain.py --preset 1.3b --data 'a b' --percent 50%"
    assert settings.env == (("HF_HOME", "/mnt/hf"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[launch]\nzon = x\n", r"pod.ini: zon is not known in \[launch\]; known are name"),
        ("[lunch]\nzone = x\n", r"pod.ini: section \[lunch\] is not known"),
        ("[launch]\nspot = perhaps\n", "pod.ini: spot: 'perhaps' must be yes or no"),
        ("[launch]\ngrace_s = soon\n", "pod.ini: grace_s: 'soon' is not a number"),
        ("zone = x\n", "pod.ini: File contains no section headers"),
        ("[launch]\nname = My TPU\n", "name 'My TPU': must be lower-case letters"),
        ("[launch]\nbase = ../x\n", r"base '\.\./x'"),
        ("[launch]\npython = python3\n", "python 'python3': give a version such as 3.11"),
        ("[launch]\nmax_per_day = 0\n", "must be above 0"),
        ("[env]\nA-B = x\n", r"\[env\] 'A-B': not a name of an environment variable"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_key(tmp_path, text, said) -> None:
    file = tmp_path / "pod.ini"
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        read_settings(str(file), {})
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"/nowhere\.ini: No such file"):
        read_settings("/nowhere.ini", {})


@pytest.mark.parametrize(
    ("name", "chips", "hosts"),
    [
        ("v4-8", 4, 1),
        ("v4-64", 32, 8),
        ("v5p-128", 64, 16),
        ("v5litepod-8", 8, 1),
        ("v5litepod-32", 32, 8),
        ("v6e-4", 4, 1),
        ("v6e-256", 256, 64),
    ],
)
def test_accelerator_types_stand_for_chips_and_hosts(name, chips, hosts) -> None:
    assert (slice_of(name).chips, slice_of(name).hosts) == (chips, hosts)


@pytest.mark.parametrize("name", ["v9-64", "v4", "v4-", "v4-x", "v4-65", "v4-20", "v6e-0", "v6e-10", "tpu7x-8", "a100"])
def test_an_unknown_topology_is_refused(name) -> None:
    with pytest.raises(UsageError, match=f"accelerator type '{name}'"):
        Settings(accelerator_type=name)


@pytest.mark.parametrize(
    ("name", "google"), [("v5e-32", "v5litepod-32"), ("V5E-8", "v5litepod-8"), ("V4-64", "v4-64"), ("v6e-4", "v6e-4")]
)
def test_everyday_names_become_those_of_google_cloud_in_any_case(name, google) -> None:
    assert Settings(accelerator_type=name).accelerator_type == google


def test_an_unknown_generation_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="'v5lite-32': unknown, the nearest are v5litepod-32"):
        slice_of("v5lite-32")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "invalid choice: 'fly'"),
        ([], "the following arguments are required: VERB"),
        (["up", "--nosuch", "1"], "unrecognized arguments: --nosuch"),
        (["up", "--accelerator-type", "v4-63"], "accelerator type 'v4-63': no such size"),
        (["up", "--spot", "maybe"], "--spot: 'maybe' must be yes or no"),
        (["stop", "--grace-s", "0"], "grace_s"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(arguments, said) -> None:
    code, out = call(*arguments)
    assert (code, out.count("\n")) == (2, 1)
    assert said in out


def test_help_names_every_verb_and_setting() -> None:
    code, out = call("--help")
    assert code == 0
    for words in ("watch ", "--accelerator_type", "--max_per_day", "(default: 180)"):
        assert words in out


def test_the_launcher_imports_the_standard_library_alone() -> None:
    program = (
        "import sys; sys.path.insert(0, '.'); before = set(sys.modules)\n"
        "import launch.command, launch.pods\n"
        "print({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names) - {'launch'})"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
