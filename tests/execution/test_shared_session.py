"""Calls without a session share one Ray, which ends with the process or with ``fr.shutdown``."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest

import fednar_ray as fr
from fednar_ray.core.errors import BadInput
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.shared_session import open_session
from tests.support.forked_workers import get_executable
from tests.support.servers import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
PLAN = ActorPlan(count=1, cpus=0.5, gpus=0)


def test_calls_without_a_session_share_one() -> None:
    with open_session(None) as first, open_session(None) as second:
        assert first is second
    with fr.RaySession() as own, open_session(own) as given:
        assert given is own
        assert given is not first
    fr.shutdown()
    fr.shutdown()  # a second time does nothing
    with open_session(None) as third:
        assert third is not first


def test_another_address_in_the_environment_opens_another_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(None) as first:
        assert first.address == "local"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with open_session(None) as second:
        assert second.address == "127.0.0.1:1"
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:secret@127.0.0.1:1")
    with pytest.raises(BadInput, match="password"), open_session(None):
        pass
    monkeypatch.delenv("RAY_ADDRESS")
    with open_session(None) as third:
        assert third.address == "local"


def test_a_ray_that_the_caller_has_initialized_is_free_again_after_each_call(local_ray: str) -> None:
    import ray

    with open_session(None) as session:
        (actor,) = session.lease(PLAN)
        process = psutil.Process(ray.get(actor.get_info.remote()).process_id)
        session.give_back(PLAN, [actor])
    psutil.wait_procs([process], timeout=PATIENCE_SECONDS)
    assert not process.is_running()
    fr.shutdown()
    assert ray.is_initialized()


SHARED = """
import os, sys
import psutil, ray
import fednar_ray as fr
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.shared_session import open_session
def lease(session, plan=ActorPlan(count=1, cpus=0.5, gpus=0)):
    (actor,) = session.lease(plan)
    process = ray.get(actor.get_info.remote()).process_id
    session.give_back(plan, [actor])
    return process

with open_session(None) as session:
    first, address = lease(session), ray.get_runtime_context().gcs_address
with open_session(None) as session:
    assert lease(session) == first  # the actor is still warm
    assert ray.get_runtime_context().gcs_address == address
with fr.RaySession() as own:  # finds the same Ray, whose idle actors make room
    everything = own.get_resources().cpus
    assert lease(own, ActorPlan(count=1, cpus=everything, gpus=0)) != first
assert ray.is_initialized()
if sys.argv[1] == "ended by the caller":
    ray.shutdown()
    with open_session(None) as session:
        assert lease(session) != first
print(*[child.pid for child in psutil.Process().children(recursive=True)])
"""


@pytest.mark.usefixtures("processes", "own_ray")
@pytest.mark.parametrize("case", ["left running", "ended by the caller"])
def test_the_shared_ray_ends_with_the_process(case: str, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    environment = {**kept, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [get_executable(), "-c", SHARED, case],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    processes = [int(word) for word in done.stdout.split()]
    assert processes
    assert not [process for process in processes if psutil.pid_exists(process)]


@pytest.mark.usefixtures("processes")
def test_forked_processes_draw_ids_of_their_own() -> None:
    """Otherwise two workers that start at once could put the same object, and the test above would wait forever."""
    command = [get_executable(), "-c", "import ray; print(ray.ObjectID.from_random().hex())"]
    drawn = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(drawn) == 2
