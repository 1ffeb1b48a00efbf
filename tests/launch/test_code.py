"""sync: the contents of the archive, its integrity, and the switch of all workers."""

import pytest

from tests.launch.conftest import World


def current(world: World, worker: int) -> str:
    return (world.home(worker) / "echotts" / "current").readlink().name


def test_the_committed_code_becomes_current_on_every_worker_with_what_it_requires(world: World) -> None:
    (world.source / "secret").write_text("never")
    (world.source / "notes.txt").write_text("not yet")
    said = world.call("up", "--accelerator_type", "v4-16") + world.call("sync")
    release = world.git("rev-parse", "HEAD")[:12]
    assert "uncommitted, and NOT sent (--dirty): notes.txt" in said
    for worker in (0, 1):
        assert current(world, worker) == release
        code = world.home(worker) / "echotts" / "current"
        names = {path.name for path in code.iterdir()}
        assert {"train_pretrain.py", "pyproject.toml"} < names
        assert not {"secret", "notes.txt", ".git"} & names
        installed = (world.home(worker) / "uv.log").read_text()
        assert f"releases/{release}: pip install --quiet --python" in installed
        assert "-r requirements.txt" in installed
        assert not list((world.home(worker) / "echotts" / "incoming").iterdir())


def test_uncommitted_files_are_sent_on_request_with_a_warning(world: World) -> None:
    world.call("up", "--accelerator_type", "v4-16")
    (world.source / "notes.txt").write_text("now")
    (world.source / "little.py").unlink()
    (world.source / "secret").write_text("never")
    said = world.call("sync", "--dirty")
    assert "UNCOMMITTED, and sent: little.py, notes.txt" in said
    release = current(world, 0)
    assert release.startswith(world.git("rev-parse", "HEAD")[:12] + "-dirty-")
    code = world.home(0) / "echotts" / "current"
    assert (code / "notes.txt").read_text() == "now"
    assert not (code / "little.py").exists()
    assert not (code / "secret").exists()
    assert world.git("status", "--porcelain").splitlines() == ["D little.py", "?? notes.txt"]  # the index is untouched
    world.call("sync", "--dirty")
    assert current(world, 1) == release


def test_the_same_code_is_copied_and_installed_once(world: World) -> None:
    world.ready()
    copies = len(world.calls("scp"))
    said = world.call("sync")
    assert "is already there" in said
    assert len(world.calls("scp")) == copies
    (world.source / "little.py").write_text("# other code, same requirements\n")
    world.commit()
    world.call("sync")
    assert (world.home(0) / "uv.log").read_text().count("pip install") == 1
    (world.source / "requirements.lock").write_text("jax==0.0.1\n")  # other versions need another environment
    world.commit()
    world.call("sync")
    assert (world.home(0) / "uv.log").read_text().count("pip install") == 2


def test_a_corrupted_archive_is_rejected_and_no_worker_switches(world: World) -> None:
    before = world.ready()
    (world.source / "little.py").write_text("print(2)\n")
    world.commit()
    (world.home(1) / "noise").touch()
    said = world.call("sync", code=1)
    assert "install: worker 1: " in said
    assert "arrived with sha256" in said
    assert (current(world, 0), current(world, 1)) == (before, before)
    (world.home(1) / "noise").unlink()
    world.call("sync")
    assert current(world, 0) == current(world, 1) != before


def test_requirements_that_cannot_be_installed_leave_the_old_release_current(world: World) -> None:
    before = world.ready()
    (world.source / "requirements.txt").write_text("nonesuch\n")
    world.commit()
    (world.home(0) / "uv-fails").touch()
    said = world.call("sync", code=1)
    assert "install: worker 0: requirements of" in said
    assert (current(world, 0), current(world, 1)) == (before, before)


@pytest.mark.slow
def test_old_releases_and_environments_go_but_not_the_one_that_runs(world: World) -> None:
    first = world.ready()
    world.call("start", *world.command())
    for number in range(4):
        (world.source / "requirements.txt").write_text(f"# {number}\n")
        world.commit()
        world.call("sync")
    base = world.home(0) / "echotts"
    releases = {path.name for path in (base / "releases").iterdir()}
    assert len(releases) == 4
    assert {first, current(world, 0)} < releases
    assert len(list((base / "venvs").iterdir())) == 4


def test_a_worker_that_cannot_be_reached_is_named(world: World) -> None:
    world.call("up", "--accelerator_type", "v4-16")
    (world.home(1) / "unreachable").touch()
    said = world.call("sync", code=1)
    assert "prepare: no answer from worker 1; last output: ssh: connect to host" in said


def test_the_token_arrives_with_mode_600_and_is_on_no_command_line(world: World, tmp_path) -> None:
    token = tmp_path / "token"
    token.write_text("hf_secret\n")
    token.chmod(0o644)
    world.call("up", "--accelerator_type", "v4-16")
    world.call("sync", "--hf_token_file", str(token))
    for worker in (0, 1):
        arrived = world.job(worker, "token")
        assert arrived.read_text() == "hf_secret\n"
        assert arrived.stat().st_mode & 0o777 == 0o600
    assert "hf_secret" not in (world.cloud / "calls.jsonl").read_text()
    assert "no Hugging Face token" not in world.call("start", *world.command("run", "hf://datasets/a/b"))


def test_hub_data_without_a_token_gives_a_warning(world: World) -> None:
    world.ready()
    assert "no Hugging Face token" in world.call("start", *world.command("run", "hf://datasets/a/b"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--hf_token_file", "/nowhere/token"], "hf_token_file /nowhere/token: missing or empty"),
        (["--source", "/nowhere"], "/nowhere: no such directory"),
        (["--source", "/"], "git rev-parse failed"),
    ],
)
def test_an_unusable_repository_is_reported_before_any_call(world: World, flags, said) -> None:
    code = 2 if "token" in flags[0] else 1
    assert said in world.call("sync", *flags, code=code)
    assert not world.calls("ssh")


def test_sync_in_a_dry_run_prints_the_steps_and_copies_nothing(world: World) -> None:
    said = world.call("sync", "--dry_run")
    for step in ("worker/prepare.sh", "tpu-vm scp", "worker/install.sh", "worker/switch.sh"):
        assert step in said
    assert not world.calls("scp")
    assert not world.calls("ssh")
