"""up, down and status: the calls of gcloud in each state."""

from tests.launch.conftest import World

CREATE = ("queued-resources", "create")
DELETE = ("queued-resources", "delete")


def test_up_requests_the_machines_and_waits_for_them(world: World) -> None:
    world.set(creations=[["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]])
    said = world.call(
        "up", "--accelerator_type", "v4-16", "--spot", "--project", "p", "--create_flags=--service-account=s"
    )
    (create,) = world.calls(*CREATE)
    assert create[4:] == [
        *("pod", "--node-id=pod", "--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--spot"),
        *("--service-account=s", "--project=p", "--zone=z"),
    ]
    assert [line for line in said.splitlines() if line.startswith("pod: ")] == [
        *("pod: no queued resource", "pod: ACCEPTED", "pod: WAITING_FOR_RESOURCES", "pod: PROVISIONING"),
        "pod: ACTIVE, TPU READY",
    ]


def test_up_twice_creates_once(world: World) -> None:
    world.call("up", "--accelerator_type", "v4-16")
    world.call("up", "--accelerator_type", "v4-16")
    assert len(world.calls(*CREATE)) == 1


def test_up_deletes_a_suspended_resource_before_it_asks_again(world: World) -> None:
    world.set(states=["SUSPENDING", "SUSPENDING", "SUSPENDED"], creations=[["ACTIVE"]])
    world.call("up", "--accelerator_type", "v4-16")
    changes = [call[3] for call in world.calls() if call[3] in ("create", "delete")]
    assert changes == ["delete", "create"]
    assert {"--force", "--quiet"} <= set(world.calls(*DELETE)[0])


def test_up_gives_up_waiting_but_leaves_the_request_in_the_queue(world: World) -> None:
    world.set(creations=[["WAITING_FOR_RESOURCES"]])
    said = world.call("up", "--accelerator_type", "v4-16", "--wait_minutes", "0.02", code=1)
    assert "pod is WAITING_FOR_RESOURCES after 0.02 minutes: the request stays in the queue" in said
    assert not world.calls(*DELETE)


def test_up_reports_why_a_request_failed_and_stops(world: World) -> None:
    world.set(creations=[["PROVISIONING", "FAILED"], ["ACTIVE"]])
    said = world.call("up", "--accelerator_type", "v4-16", code=1)
    assert said.splitlines()[-1].startswith(
        "launch: pod is FAILED: Quota limit 'TPUV4' has been exceeded. (code 8): fix"
    )
    assert len(world.calls(*CREATE)) == 1
    assert not world.calls(*DELETE)
    world.call("down")
    world.call("up", "--accelerator_type", "v4-16")


def test_up_ends_at_its_limit_if_every_slice_is_preempted(world: World) -> None:
    world.set(creations=[["SUSPENDED"]] * 1000)
    said = world.call("up", "--accelerator_type", "v4-16", "--wait_minutes", "0.05", code=1)
    assert "pod is SUSPENDED after 0.05 minutes" in said


def test_up_waits_for_a_slice_that_was_just_granted_to_be_listed(world: World) -> None:
    world.set(creations=[["ACTIVE"]], unlisted=4)
    said = world.call("up", "--accelerator_type", "v4-16")
    assert said.splitlines()[-2:] == ["pod: ACTIVE, but its TPU is not listed", "pod: ACTIVE, TPU READY"]
    assert not world.calls(*DELETE)


def test_up_replaces_a_granted_slice_that_is_never_listed(world: World) -> None:
    world.set(states=["ACTIVE"], unlisted=3, creations=[["ACTIVE"]])
    world.call("up", "--accelerator_type", "v4-16", "--lost_s", "0.01")
    assert len(world.calls(*DELETE)) == len(world.calls(*CREATE)) == 1


def test_up_in_a_dry_run_prints_the_request_without_making_it(world: World) -> None:
    said = world.call("up", "--accelerator_type", "v4-16", "--dry-run")
    assert "+ gcloud compute tpus queued-resources create pod --node-id=pod" in said
    assert not world.calls(*CREATE)


def test_a_tpu_that_is_gone_below_an_active_resource_is_replaced(world: World) -> None:
    world.set(states=["ACTIVE"], node="PREEMPTED", creations=[["ACTIVE"]])
    said = world.call("up", "--accelerator_type", "v4-16", "--wait_minutes", "0")
    assert "ACTIVE, TPU PREEMPTED" in said
    assert world.calls(*DELETE)
    assert world.calls(*CREATE)


def test_down_stops_and_gives_back_and_twice_is_no_error(world: World) -> None:
    world.ready()
    world.call("start", *world.command())
    said = world.call("down")
    assert "worker 0, 1: stopped" in said
    assert not world.home(0).exists()
    assert "nothing to release" in world.call("down")
    assert len(world.calls(*DELETE)) == 1


def test_down_in_a_dry_run_leaves_everything(world: World) -> None:
    world.ready()
    said = world.call("down", "--dry_run")
    assert "--command=bash -c <worker/stop.sh>" in said
    assert "queued-resources delete pod --force --quiet" in said
    assert not world.calls(*DELETE)


def test_status_of_machines_that_are_not_there_is_one_line(world: World) -> None:
    assert world.call("status") == "pod: no queued resource\n"


def test_a_refusal_of_gcloud_is_one_line_with_its_reason(world: World) -> None:
    refusal = "ERROR: (gcloud) PERMISSION_DENIED: Permission 'tpu.nodes.get' denied"
    world.set(broken=f"WARNING: x\n{refusal}")
    said = world.call("status", code=1)
    assert said == f"launch: gcloud queued-resources describe pod: {refusal}\n"


def test_without_gcloud_the_error_has_the_installation_url(world: World, tmp_path, monkeypatch) -> None:
    (world.cloud / "bin" / "gcloud").unlink()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "gcloud is not installed" in world.call("status", code=1)
