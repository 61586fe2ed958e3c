"""The resources that a trial reserves, and searches that can never fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fednar_ray as fr
from fednar_ray.core.errors import CapacityError, RunFailed
from fednar_ray.experiments.placement import resolve_group_size
from fednar_ray.experiments.prepare import prepare
from fednar_ray.tuning.resources import plan_resources
from fednar_ray.tuning.search import resume_search, start_search
from fednar_ray.tuning.trial_table import FAILED, TrialTable
from tests.support.searches import (
    GRID,
    IGNORED_WARNINGS,
    RATE,
    build_search,
    draw_no_pages,
    list_outcomes,
    show_nothing,
    train_alone,
)

pytestmark = IGNORED_WARNINGS


def test_a_search_that_can_never_fit_is_refused_before_it_starts(
    uri: str, session: fr.RaySession, tmp_path: Path
) -> None:
    for execution, text in (
        (
            {"placement": "serial", "cpus_per_actor": 64},
            "a trial needs 64 CPUs at once, which does not fit: the cluster has",
        ),
        ({"placement": "pooled", "actors": 9, "gpus_per_actor": 0}, "9 actors of 1 CPU"),
    ):
        with pytest.raises(CapacityError, match=text):
            start_search(build_search(f"sqlite:///{tmp_path}/new.db", GRID, execution=execution), session, show_nothing)
    assert not Path("searches").exists()
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("placement", ["auto", "pooled"])
def test_a_pack_takes_the_place_of_the_actor_that_a_trial_has_on_a_gpu(placement: str, session: fr.RaySession) -> None:
    document = build_search("sqlite://", GRID, execution={"placement": placement, "cpus_per_actor": 0.5})
    resources = plan_resources(document.experiment, session)
    bundle = {"CPU": 0.5, "GPU": 1.0}
    assert (resources.bundles, resources.concurrent, resources.gpu) == (({}, bundle), 2, True)
    assert resources.execution.items() >= {"placement": "pooled", "actors": 1, "gpus_per_actor": 1.0}.items()
    packs = resources.for_packs()
    assert packs.bundles == (bundle,)
    assert replace(packs, bundles=resources.bundles) == resources
    assert resources.matrix is not None
    prepared = prepare(document.experiment)
    assert resources.execution["vectorize"] == resources.matrix.group_size == resolve_group_size(prepared, gpu=True)


def test_the_share_of_a_gpu_is_that_of_an_actor(session: fr.RaySession) -> None:
    document = build_search("sqlite://", GRID, execution={"cpus_per_actor": 0.5, "gpus_per_actor": 0.25})
    resources = plan_resources(document.experiment, session).for_packs()
    assert (resources.bundles, resources.concurrent) == (({"CPU": 0.5, "GPU": 0.25},), 8)


@pytest.mark.parametrize(
    "execution",
    [
        {"actors": 1},
        {"actors": 2, "gpus_per_actor": 0.5},
        {"placement": "dedicated", "gpus_per_actor": 0.25, "cpus_per_actor": 0.25},
        {"gpus_per_actor": 0, "placement": "pooled"},
    ],
)
def test_actors_that_were_asked_for_are_not_replaced(execution: dict[str, Any], session: fr.RaySession) -> None:
    resources = plan_resources(build_search("sqlite://", GRID, execution=execution).experiment, session)
    assert resources.matrix is None
    assert not resources.gpu


def test_a_search_that_leaves_gpus_alone_trains_on_the_cpu(session: fr.RaySession) -> None:
    resources = plan_resources(build_search("sqlite://", GRID, execution={"gpus_per_actor": 0}).experiment, session)
    assert (resources.bundles, resources.gpu) == (({"CPU": 1.0},), False)


@pytest.mark.usefixtures("searches")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine whose GPU torch can use trains there")
def test_packs_are_given_gpus_and_say_that_torch_cannot_use_them(uri: str, session: fr.RaySession) -> None:
    search = {
        "algorithm": "grid",
        "space": {RATE: {"grid": [0.05, 0.1]}},
        "pack": 2,
        "concurrent": "auto",
        "retries": 0,
    }
    with pytest.raises(RunFailed, match=r"trial-0000 failed: .*Ray assigned GPU .*, but torch sees no CUDA device"):
        start_search(build_search(uri, search, execution={}), session, show_nothing)
    table = TrialTable.load("small")
    assert (table.pack, table.gpu) == (2, True)
    assert {entry.status for entry in table.trials.values()} == {FAILED}
    with pytest.raises(RunFailed, match="no trial of small trained all"):
        resume_search("small", session, show_nothing)


@pytest.mark.usefixtures("searches")
def test_a_finished_search_of_packs_is_resumed_where_it_can_be(uri: str, session: fr.RaySession) -> None:
    search = {"algorithm": "grid", "space": {RATE: {"grid": [0.05, 0.1]}}, "pack": 2, "concurrent": "auto"}
    document = build_search(uri, search, execution={"gpus_per_actor": 0})
    with draw_no_pages():
        outcomes = list_outcomes(start_search(document, session, show_nothing))
        assert list_outcomes(resume_search("small", session, show_nothing)) == outcomes
    table = TrialTable.load("small")
    assert not table.gpu
    table.gpu = True  # as if its trials had trained on GPUs, which this experiment leaves alone
    table.save()
    with pytest.raises(CapacityError, match="small: its trials train on GPUs, and there are none"):
        resume_search("small", session, show_nothing)


@pytest.mark.usefixtures("searches")
def test_a_trial_reserves_its_actors(uri: str, session: fr.RaySession) -> None:
    search = {"algorithm": "grid", "space": {RATE: {"grid": [0.05, 0.1]}}}
    actors = {"placement": "pooled", "actors": 2, "gpus_per_actor": 0, "vectorize": 2}
    with draw_no_pages():
        pooled = start_search(build_search(uri, search, execution=actors), session, show_nothing)
    serial = build_search(uri, search, execution={**actors, "placement": "serial"})
    assert list_outcomes(pooled) == train_alone(serial, [{RATE: 0.05}, {RATE: 0.1}])
