"""A session leases actors, keeps them warm, and ends everything that it started."""

import json

import psutil
import pytest

import fednar_ray as fr
from fednar_ray.config import ExecutionSettings
from fednar_ray.core.errors import RayUnavailable
from fednar_ray.execution import private_ray
from fednar_ray.execution.capacity import ActorPlan, Footprint, plan_pooled
from fednar_ray.execution.session import _check_reachable
from tests.support.cluster_nodes import run_in_own_process


def test_an_address_without_a_server_is_refused() -> None:
    with pytest.raises(RayUnavailable, match=r"no Ray answers at 127\.0\.0\.1:1"):
        _check_reachable("127.0.0.1:1")


def fail_early() -> None:
    private_ray.MAX_PATH_BYTES = 0  # so that no directory is short enough for Ray's sockets
    session = fr.RaySession("local")
    session.start_early()
    with pytest.raises(fr.RayUnavailable, match="too long for Ray's sockets"):
        session.connect()
    session.close()
    print(json.dumps("failed where Ray is needed"))


def test_an_early_start_reports_its_failure_where_ray_is_needed(processes: None) -> None:
    assert run_in_own_process(fail_early) == "failed where Ray is needed"  # this process may have Ray already


def test_logical_gpus_are_shared_as_planned(session: fr.RaySession) -> None:
    import ray

    plan = plan_pooled(
        ExecutionSettings(actors=4, cpus_per_actor=0.5), 4, session.get_resources(), Footprint(model_bytes=0)
    )
    assert plan == ActorPlan(count=4, cpus=0.5, gpus=0.5)
    actors = session.lease(plan)
    gpus = sorted(gpu for actor in actors for gpu in ray.get(actor.get_info.remote()).gpus)
    assert gpus == ["0", "0", "1", "1"]
    session.give_back(plan, actors)


def test_actors_are_named_by_their_run_and_slot(session: fr.RaySession) -> None:
    """A replacement gets another name if the actor that it replaces has not ended yet."""
    import ray
    from ray._private.state import actors as list_actors

    plan = ActorPlan(count=2, cpus=0.5, gpus=0, owner="digits-8dd427d1")
    actors = [*session.start_actors(plan, [0, 1]), *session.start_actors(plan, [1])]
    names = {actor["ActorID"]: actor["Name"] for actor in list_actors().values()}
    assert [names[actor._actor_id.hex()] for actor in actors] == [
        "digits-8dd427d1 actor 0", "digits-8dd427d1 actor 1", "digits-8dd427d1 actor 1 (2)",
    ]  # fmt: skip
    for actor in actors:
        ray.kill(actor)


def test_closing_a_session_ends_its_actors_but_not_a_ray_it_did_not_start(local_ray: str) -> None:
    import ray

    with fr.RaySession() as own:
        actors = own.lease(ActorPlan(count=2, cpus=0.5, gpus=0))
        processes = [psutil.Process(place.process_id) for place in ray.get([a.get_info.remote() for a in actors])]
        own.give_back(ActorPlan(count=2, cpus=0.5, gpus=0), actors)
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert ray.is_initialized()  # the session did not start this Ray, so it does not end it
