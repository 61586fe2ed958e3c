"""Alerts are not raised for runs that learn. For others they name the cause and the setting to change."""

import logging
import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.config import load_embedded
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.alerts import CHECKS, Alert, AlertMonitor, ChanceLevel, find_alerts
from fednar_ray.experiments.alerts.callback import compute_chance_level
from tests.support.drawn import draw
from tests.support.stores import create_store

CHANCE = ChanceLevel("accuracy", 0.1)


def build_experiment(**sections: Any) -> fr.Experiment:
    base = {"federation": {"rounds": 50, "clients_per_round": 10, "local_steps": 20}}
    return fr.Experiment.model_validate({**base, **sections})


def train_digits(file: str, overrides: list[str]) -> tuple[tuple[RoundRecord, ...], tuple[Alert, ...]]:
    """Returns the rounds of a run, and its alerts."""
    return train_once(file, tuple(overrides))


@cache
def train_once(file: str, overrides: tuple[str, ...]) -> tuple[tuple[RoundRecord, ...], tuple[Alert, ...]]:
    """Trains settings once for all tests that look at them."""
    settings = load_embedded(file, ["execution.placement=serial", "federation.rounds=15", *overrides]).experiment
    records = tuple(report.record() for report in fr.iter_rounds(settings))
    return records, find_alerts(settings, records, ChanceLevel("accuracy", 0.103))


HEALTHY = {
    "FedNAR": ("digits", []),
    "a high decay that FedNAR holds down": ("compare", []),
    "clipped, and well chosen": ("compare", ["regularizer.name=decoupled", "regularizer.weight_decay=0.001"]),
    "no decay": ("digits", ["regularizer.name=none"]),
    "FedAdam": ("digits", ["algorithm.name=fedadam"]),
    "FedAvgM": ("digits", ["algorithm.name=fedavgm", "regularizer.name=decoupled"]),
    "SCAFFOLD with FedExP": ("digits", ["algorithm.name=scaffold+exp"]),
    "FedDyn": ("digits", ["algorithm.name=feddyn"]),
    "very unlike clients": ("digits", ["data.partition.alpha=0.05"]),
    "a third of the clients stays away": ("digits", ["availability.dropout=0.3"]),
    "slow": ("digits", ["algorithm.local_lr=0.01"]),
}


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("case", HEALTHY)
def test_a_run_that_learns_raises_no_alert(case):
    _, alerts = train_digits(*HEALTHY[case])
    assert alerts == ()


BAD = {
    "weight_decay": ("digits", ["regularizer.name=decoupled", "regularizer.weight_decay=0.1"], "decay_dominates"),
    "the decay of a clipped gradient": ("compare", ["regularizer.name=decoupled"], "decay_dominates"),
    "clip_bound": ("digits", ["regularizer.clip_bound=0.001"], "clips_everything"),
    "local_lr too high": ("digits", ["algorithm.local_lr=10"], "stalls"),
    "local_lr too low": ("digits", ["algorithm.local_lr=0.0005"], "stalls"),
    "nan": ("digits", ["attacks.nan=0.6"], "loses_clients"),
    "dropout": ("digits", ["availability.dropout=0.9"], "loses_clients"),
    "clients that send a hundred times too much": ("digits", ["attacks.scaled=0.2"], "diverges"),
}
CHANGE = {
    "weight_decay": "regularizer.weight_decay: 0.01 (now 0.1), which would pull with 0.0",
    "the decay of a clipped gradient": "fednar compare FILE compare.regularizers=[decoupled,fednar]",
    "clip_bound": "regularizer.clip_bound: 2.4 (now 0.001), which would have clipped at most half of this run's steps",
    "local_lr too high": "algorithm.local_lr: 1 (now 10)",
    "local_lr too low": "algorithm.local_lr: 0.005 (now 0.0005)",
    "nan": "look at the data of these clients",
    "dropout": "availability.over_sampling",
    "clients that send a hundred times too much": "screening.max_deviation: 5 leaves out those far from the rest",
}


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("case", BAD)
def test_a_badly_chosen_setting_is_reported_with_a_remedy(case):
    file, overrides, names = BAD[case]
    _, alerts = train_digits(file, overrides)
    assert ",".join(alert.name for alert in alerts) == names
    assert CHANGE[case] in alerts[0].message
    assert all("Likely cause: " in alert.message for alert in alerts)


# the advice is safe

VALUE = re.compile(r"(algorithm|regularizer)\.(\w+): (\S+) \(now ")


def list_advice(alerts: Iterable[Alert]) -> list[str]:
    """Returns the settings for which alerts give a value, as overrides."""
    found = [VALUE.finditer(alert.message.partition("What to change: ")[2]) for alert in alerts]
    return [f"{section}.{name}={value}" for matches in found for section, name, value in (m.groups() for m in matches)]


def measure_accuracy(file: str, overrides: list[str]) -> tuple[float, tuple[Alert, ...]]:
    """Returns the mean test accuracy of the last rounds, and the run's alerts."""
    records, alerts = train_digits(file, overrides)
    return sum(record.metrics["test_accuracy"] for record in records[-3:]) / 3, alerts


ADVISED = {
    "decay of plain SGD": (["regularizer.name=coupled", "regularizer.weight_decay=0.1"], 1),
    "decay of a clipped gradient": (["regularizer.name=decoupled", "regularizer.weight_decay=0.1"], 1),
    "a bound near zero": (["regularizer.clip_bound=0.001"], 1),
    "a bound that makes up for long steps": (["regularizer.clip_bound=0.03", "algorithm.local_lr=3"], 0),
    "long steps": (["algorithm.local_lr=10"], 1),
}


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("case", ADVISED)
def test_following_an_alert_does_not_lower_the_accuracy(case):
    overrides, values = ADVISED[case]
    before, alerts = measure_accuracy("digits", overrides)
    assert alerts
    changes = list_advice(alerts)
    assert len(changes) == values
    for change in changes:
        after, _ = measure_accuracy("digits", [*overrides, change])
        assert after >= before - 0.02, change


@draw(60)
@given(data=st.data(), anneal=st.floats(0.8, 1.0), name=st.sampled_from(["fednar", "decoupled"]))
def test_an_advised_bound_would_have_clipped_at_most_half_of_the_steps(data, anneal, name):
    """The norms have any spread; rows are clients and columns are steps."""
    bound, records, rounds = 0.001, [], []
    for t in range(12):
        seed, spread = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.floats(0, 3))
        norms = np.random.default_rng(seed).lognormal(1, spread, size=(4, 6))
        rounds.append(norms)
        low, high = np.quantile(norms.mean(axis=1), (0.1, 0.9))
        metrics = {"step_norm": norms.mean(), "step_norm_p10": low, "step_norm_p90": high}
        records.append(
            record(t, **metrics, clip_bound=bound * anneal**t, clip_fraction=1.0, update_norm=1e-6, test_accuracy=0.1)
        )
    alerts = find_alerts(build_experiment(regularizer={"name": name, "clip_bound": bound}), records, CHANCE)
    assert {alert.name for alert in alerts} == {"clips_everything"}
    for alert in alerts:
        ((_, value),) = [change.split("=") for change in list_advice([alert])]
        seen = rounds[: alert.round_index + 1]
        shares = [(norms > float(value) * anneal**t).mean() for t, norms in enumerate(seen)]
        assert max(shares) <= 0.5


def find_divergence_alert(norm: float, **sections: Any) -> str:
    """Returns the alert of a run whose steps become longer than in its best rounds, in which ‖v‖ was 1."""
    risen = [record(t, train_loss=50.0, step_norm=norm, step_norm_p90=norm, clip_bound=10.0) for t in range(8, 11)]
    (alert,) = find_alerts(build_experiment(**sections), [*build_learning_records(8, clip_bound=10.0), *risen], CHANCE)
    assert alert.name == "diverges"
    return alert.message


def test_a_diverging_run_is_advised_the_bound_of_its_best_rounds_or_none():
    """The bound is twice the mean norm of the best rounds, rounded up, unless it clips nothing or is above the old."""
    advice = "regularizer.clip_bound: 2.1 (now 10), which would have clipped at most half of the steps up to the best"
    assert advice in find_divergence_alert(9.0)
    assert f"regularizer.name: fednar with {advice}" in find_divergence_alert(9.0, regularizer={"name": "coupled"})
    for norm, sections in [(1.5, {}), (math.nan, {}), (9.0, {"regularizer": {"name": "none"}})]:
        message = find_divergence_alert(norm, **sections)
        assert "clip_bound:" not in message
        assert "algorithm.local_lr: 0.01 (now 0.1); shorter steps take more rounds" in message


def test_the_advised_decay_no_longer_moves_parameters_across_zero():
    rising = [record(t, train_loss=float(9**t), weight_decay=1e4) for t in range(6)]
    (alert, *_) = find_alerts(build_experiment(regularizer={"weight_decay": 1e4}), rising, CHANCE)
    assert "regularizer.weight_decay: 0.1 (now 10000); a step then shrinks the parameters by 1 %" in alert.message


# records built by hand, round by round

USUAL = {
    "train_loss": 1.0, "clip_fraction": 0.5, "effective_weight_decay": 0.01, "step_norm": 1.0, "step_norm_p10": 0.5,
    "step_norm_p90": 1.5, "update_norm": 0.5, "parameter_norm": 10.0, "local_lr": 0.1, "weight_decay": 0.01,
    "clip_bound": 1.0, "clients_sampled": 10.0, "clients_dropped_out": 0.0, "clients_late": 0.0,
    "clients_trained": 10.0, "clients_failed": 0.0,
}  # fmt: skip


def record(index: int, exclusions: dict[int, Exclusion] | None = None, **metrics: float) -> RoundRecord:
    return RoundRecord(
        round_index=index, metrics={**USUAL, **metrics}, client_ids=tuple(range(10)), exclusions=exclusions or {}
    )


def list_names(
    records: list[RoundRecord], chance: ChanceLevel | None = CHANCE, **sections: Any
) -> list[tuple[str, int]]:
    alerts = find_alerts(build_experiment(**sections), records, chance)
    return [(alert.name, alert.round_index) for alert in alerts]


def build_learning_records(rounds: int, **metrics: float) -> list[RoundRecord]:
    return [record(t, train_loss=2 / (t + 1), test_accuracy=1 - 0.8 / (t + 1), **metrics) for t in range(rounds)]


def test_a_loss_above_its_initial_value_raises_an_alert():
    assert list_names([*build_learning_records(8), *(record(t, train_loss=4.5) for t in range(8, 12))]) == [
        ("diverges", 10)
    ]
    assert list_names([*build_learning_records(8), *(record(t, train_loss=3.5) for t in range(8, 12))]) == []


def test_a_loss_that_is_not_finite_raises_an_alert():
    assert list_names([*build_learning_records(2), record(2, test_loss=math.nan)]) == [("diverges", 2)]


def test_an_accuracy_that_falls_back_to_chance_raises_an_alert():
    lost = [record(t, test_accuracy=0.1) for t in range(8, 12)]
    assert list_names([*build_learning_records(8), *lost]) == [("diverges", 10)]
    assert list_names([*build_learning_records(8), *lost], chance=None) == []


def test_a_regression_no_better_than_the_mean_raises_an_alert():
    stuck = [record(t, test_rmse=2.0) for t in range(12)]
    assert list_names(stuck, ChanceLevel("rmse", 2.0)) == [("stalls", 9)]
    assert list_names([record(t, test_rmse=1.0) for t in range(12)], ChanceLevel("rmse", 2.0)) == []


def test_without_an_evaluation_the_training_loss_decides():
    falling = [record(t, train_loss=1.0 if t else 1.2) for t in range(15)]
    assert list_names(falling) == []
    assert list_names([record(t) for t in range(15)]) == [("stalls", 9)]


def test_a_long_run_is_judged_later():
    long = {"federation": {"rounds": 200, "clients_per_round": 10, "local_steps": 20}}
    assert list_names([record(t, test_accuracy=0.1) for t in range(60)], **long) == [("stalls", 39)]


def test_late_clients_beyond_the_wanted_number_do_not_count_as_lost():
    over = [record(t, clients_sampled=30.0, clients_late=20.0) for t in range(6)]
    assert list_names(over) == []
    late = [record(t, clients_trained=4.0, clients_late=6.0) for t in range(6)]
    (alert,) = find_alerts(build_experiment(), late)
    assert (alert.name, alert.round_index) == ("loses_clients", 4)
    assert "60 % of the clients" in alert.message
    assert "availability.deadline_seconds" in alert.message


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (ExclusionReason.NORM_TOO_LARGE, "screening.max_deviation"),
        (ExclusionReason.NOT_FINITE, "look at the data"),
        (ExclusionReason.FAILED, "execution.retries"),
    ],
)
def test_exclusions_are_distinguished_by_their_reason(reason, change):
    excluded = dict.fromkeys((1, 2, 3), Exclusion(reason))
    failing = [record(t, excluded, clients_failed=3, clients_trained=7) for t in range(6)]
    (alert,) = find_alerts(build_experiment(), failing)
    assert alert.name == "loses_clients"
    assert change in alert.message


def test_each_kind_is_raised_once_and_none_that_follows_from_another():
    bad = [record(0), *(record(t, train_loss=50.0, test_accuracy=0.1) for t in range(1, 50))]
    assert list_names(bad) == [("diverges", 3)]


def test_a_run_that_decay_holds_at_chance_does_not_stall_for_another_reason():
    """Its steps have a usual length, so that a stall would be put down to the data."""
    strong = {"weight_decay": 0.5, "test_accuracy": 0.1}
    shrinking = [record(t, **strong, parameter_norm=10.0 * max(0.7**t, 0.1)) for t in range(30)]
    settings = {"regularizer": {"name": "decoupled", "weight_decay": 0.5}}
    assert [name for name, _ in list_names(shrinking, **settings)] == ["decay_dominates"]


def test_within_a_comparison_no_comparison_is_advised():
    shrinking = [record(t, weight_decay=0.5, parameter_norm=10.0 * 0.8**t) for t in range(8)]
    experiment = build_experiment(regularizer={"name": "decoupled", "weight_decay": 0.5})
    alone, compared = (find_alerts(experiment, shrinking, is_compared=on)[0] for on in (False, True))
    assert "fednar compare FILE compare.regularizers=[decoupled,fednar]" in alone.message
    assert "compare" not in compared.message
    assert compared.message.removesuffix(".") in alone.message


def test_a_model_that_predicts_only_the_frequent_class_raises_an_alert():
    """Of 100 labels 97 are of one class: F1 of that class is 2·97/(100 + 97), of the other 0."""
    constant = {"test_accuracy": 0.97, "test_macro_f1": 0.97 / 1.97}
    chance = ChanceLevel("accuracy", 0.97)
    learning = [record(t, train_loss=2 / (t + 1), **constant) for t in range(12)]
    (alert,) = find_alerts(build_experiment(model={"name": "mlp"}), learning, chance)
    assert (alert.name, alert.round_index) == ("predicts_one_class", 9)
    assert "97 % of the labels are of this class" in alert.message
    assert "model.class_weights: balanced" in alert.message
    weighted = build_experiment(model={"name": "mlp", "class_weights": "balanced"})
    assert "class_weights" not in find_alerts(weighted, learning, chance)[0].message
    better = [record(t, train_loss=2 / (t + 1), test_accuracy=0.97, test_macro_f1=0.6) for t in range(12)]
    assert list_names(better, chance) == []
    assert list_names([*learning[:9], record(9, train_loss=0.1, test_accuracy=0.98, test_macro_f1=0.7)], chance) == []


def test_an_aborted_round_raises_an_alert():
    watch = AlertMonitor(build_experiment(algorithm={"local_lr": 5.0}))
    (alert,) = watch.check_abort(RoundAborted(0, "0 of 10 client updates usable", ExclusionReason.NOT_FINITE))
    assert alert.name == "diverges"
    assert "algorithm.local_lr: 0.5 (now 5)" in alert.message
    assert watch.check_abort(RoundAborted(0, "again", ExclusionReason.NOT_FINITE)) == ()
    (alert,) = watch.check_abort(RoundAborted(3, "2 of 10 are left: none is finite", ExclusionReason.FAILED))
    assert (alert.name, alert.round_index) == ("loses_clients", 3)


numbers = st.one_of(st.floats(), st.sampled_from([0.0, math.nan, math.inf]))
histories = st.lists(st.dictionaries(st.sampled_from([*USUAL, "test_accuracy", "test_loss"]), numbers), max_size=15)


@draw(200)
@given(history=histories, name=st.sampled_from(["fednar", "decoupled", "coupled", "none"]))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # sums of infinities
def test_no_record_causes_an_error_in_a_check(history, name):
    records = [
        RoundRecord(round_index=t, metrics=metrics, client_ids=(), exclusions={}) for t, metrics in enumerate(history)
    ]
    alerts = find_alerts(build_experiment(regularizer={"name": name}), records, CHANCE)
    assert len({alert.name for alert in alerts}) == len(alerts) <= len(CHECKS)


def test_the_chance_level_follows_from_the_task(federation):
    assert compute_chance_level(federation) == ChanceLevel(
        "accuracy", max((federation.test.y == label).mean() for label in range(3))
    )
    assert CHANCE.compute_progress({"test_accuracy": 0.55}) == pytest.approx(0.5)
    assert ChanceLevel("rmse", 2.0).compute_progress({"test_rmse": 0.5}) == pytest.approx(0.75)
    assert CHANCE.compute_progress({"test_accuracy": 0.1, "validation_accuracy": 1.0}) == 1
    assert math.isnan(CHANCE.compute_progress({"train_loss": 1.0}))


# alerts during a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a working directory with a tracking store."""
    return tmp_path_factory.mktemp("watched")


def build_serial_experiment(folder: Path, **sections: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "name": "watched",
            "model": {"name": "mlp", "hidden": 4},
            "federation": {"rounds": 6, "clients_per_round": 4, "local_steps": 2, "batch_size": 8},
            "regularizer": {"clip_bound": 0.001},
            "execution": {"placement": "serial"},
            "tracking": {"uri": create_store(folder / "m.db")},
            **sections,
        }
    )


def load_tags(run_id: str, folder: Path) -> dict[str, str]:
    found = MlflowClient(create_store(folder / "m.db")).get_run(run_id).data.tags
    return {key: value for key, value in found.items() if key.startswith("fednar.alert")}


@pytest.mark.usefixtures("recorded_runs")
def test_an_alert_is_logged_and_tracked_and_returned_and_kept(federation, folder, monkeypatch, caplog):
    monkeypatch.chdir(folder)
    settings = build_serial_experiment(folder)
    with caplog.at_level(logging.WARNING, "fednar_ray"):
        result = fr.run(settings, federation=federation)
    (alert,) = result.alerts
    assert alert.name == "clips_everything"
    (line,) = [message for message in caplog.messages if "clips_everything" in message]
    assert alert.message in line
    kept = {"fednar.alerts": "clips_everything", "fednar.alert.clips_everything": alert.message}
    assert load_tags(result.run_id, folder) == kept
    longer = settings.model_copy(update={"federation": settings.federation.model_copy(update={"rounds": 8})})
    caplog.clear()
    for _ in range(2):  # the run is resumed, with no rounds left to train
        again = fr.run(longer, federation=federation, resume=str(result.directory))
        assert again.alerts == result.alerts
        assert load_tags(result.run_id, folder) == kept
    assert not any("clips_everything" in message for message in caplog.messages)  # it was reported before


@pytest.mark.usefixtures("recorded_runs")
def test_a_run_without_alerts_records_none(federation, folder, monkeypatch):
    monkeypatch.chdir(folder)
    result = fr.run(build_serial_experiment(folder, regularizer={"clip_bound": 1.0}), federation=federation)
    assert result.alerts == ()
    assert load_tags(result.run_id, folder) == {"fednar.alerts": "none"}


def test_an_aborted_run_records_why(federation, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(RoundAborted):
        fr.run(
            build_serial_experiment(folder, name="aborted", algorithm={"local_lr": 1e30}, regularizer={"name": "none"}),
            federation=federation,
        )
    client = MlflowClient(create_store(folder / "m.db"))
    (run,) = client.search_runs([client.get_experiment_by_name("aborted").experiment_id])
    assert load_tags(run.info.run_id, folder)["fednar.alerts"] == "diverges"
