"""Clients with names are called by them in log lines, alerts and errors."""

import logging
from typing import Any

import numpy as np
import pytest

import fednar_ray as fr
from fednar_ray.data.examples import Shards
from fednar_ray.experiments.alerts import find_alerts
from fednar_ray.experiments.prepare import prepare
from tests.conftest import build_small_federation

NAMES = ("north", "south", "west", "east")


def build_named_federation(sizes: tuple[int, ...] = (20, 20, 20, 20)) -> fr.Federation:
    unnamed = build_small_federation(sizes)
    clients = [unnamed.shards.only(i).examples for i in range(len(sizes))]
    pairs = {name: (part.x, part.y) for name, part in zip(NAMES, clients, strict=True)}
    return fr.Federation(pairs, test=(unnamed.test.x, unnamed.test.y))


def build_experiment(**sections: Any) -> fr.Experiment:
    base = {
        "model": {"name": "logistic"},
        "federation": {"rounds": 5, "local_steps": 1, "batch_size": 8, **sections.pop("federation", {})},
        "execution": {"placement": "serial"},
    }
    return fr.Experiment.model_validate({**base, **sections})


def test_excluded_clients_are_named_in_the_log_and_in_the_alert(caplog: pytest.LogCaptureFixture) -> None:
    experiment, federation = build_experiment(attacks={"nan": 0.5}), build_named_federation()
    with caplog.at_level(logging.WARNING, logger="fednar_ray"):
        records = [report.record() for report in fr.iter_rounds(experiment, federation=federation)]
    excluded = {NAMES[client_id] for record in records for client_id in record.exclusions}
    assert excluded
    assert len(excluded) < len(NAMES)
    lines = {line.partition(" excluded:")[0] for line in caplog.messages if " excluded:" in line}
    assert {line.partition(": ")[2] for line in lines} == {f"client {name}" for name in excluded}
    alert = next(
        alert
        for alert in find_alerts(experiment, records, client_names=federation.client_names)
        if alert.name == "loses_clients"
    )
    shown = [name for name in NAMES if name in alert.message]
    assert set(shown) == excluded


def test_a_schedule_of_clients_that_cannot_take_part_names_them() -> None:
    whole = build_small_federation((5, 7, 9, 4))
    offsets = np.array([0, 5, 5, 12, 21])  # the second client has no examples
    shards = Shards(whole.shards.examples, offsets)
    schedule = [[0, 1], [4, 7], [2, 3], [1], [0]]
    with pytest.raises(fr.ConfigError) as error:
        prepare(
            build_experiment(federation={"participation": schedule}),
            fr.Federation.from_shards("wards", shards, whole.test, None, 0, client_names=NAMES),
        )
    assert error.value.problems == (
        "federation.participation.0: [1]: client south has no examples; leave it out",
        "federation.participation.1: [4, 7]: no such clients; ids run from 0 (north) to 3 (east)",
        "federation.participation.3: [1]: client south has no examples; leave it out",
    )
