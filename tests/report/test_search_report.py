"""The report on a search, whose numbers follow from its trials, finished or not."""

import csv
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import pytest
from matplotlib.image import imread
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from scipy import stats

from fednar_ray.core.errors import BadInput
from fednar_ray.report.axes import build_axis_scale, build_color_scale, build_label, build_plain_label
from fednar_ray.report.heat_maps import LEAST_TRIALS, compute_binned_means, compute_cell_means, list_pairs
from fednar_ray.report.importance import compute_importances, explain_missing_importances
from fednar_ray.report.search_answer import SearchOutcome, describe_search
from fednar_ray.report.search_page import describe_sensitivity
from fednar_ray.report.search_report import write_report
from fednar_ray.report.search_results import compute_search_facts, rank_trials, tabulate_trials
from fednar_ray.report.sensitivity import compute_sensitivity
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.searches import Curve, SearchRecord, TrialRecord, parse_value, read_search
from fednar_ray.tuning.trial_table import RUNNING, TrialEntry, TrialTable
from tests.support.stores import create_store

A, DECAY, LR = "regularizer.clip_bound", "regularizer.weight_decay", "algorithm.local_lr"
DECAY_ANNEAL, NAME = "regularizer.weight_decay_anneal", "regularizer.name"
ROUNDS = 4


def build_trial(number: int, values: dict[str, Any], value: float | None, status: str = "finished") -> TrialRecord:
    """Builds a trial whose metric rises from 0 to ``value``, in half of the rounds if it was stopped."""
    rounds = ROUNDS if status == "finished" else ROUNDS // 2
    history = () if value is None else tuple((t, value * (t + 1) / rounds) for t in range(rounds))
    return TrialRecord(name=f"trial-{number:04d}", values=values, status=status, history=history)


def build_search(trials: list[TrialRecord], space: dict[str, Any], **changes: Any) -> SearchRecord:
    fields: dict[str, Any] = {
        "name": "small",
        "run_id": "0",
        "metric": "validation_accuracy",
        "mode": "max",
        "test_metric": "test_accuracy",
        "algorithm": "grid",
        "scheduler": "none",
        "seeds": 1,
        "settings": {"federation.rounds": ROUNDS, NAME: "fednar", A: 10.0, DECAY: 0.01},
        "space": space,
        "trials": tuple(trials),
        "best": None,
        "baseline": None,
    }
    return SearchRecord(**{**fields, **changes})


def build_curve(last: float, **settings: Any) -> Curve:
    history = tuple((t, last * (t + 1) / ROUNDS) for t in range(ROUNDS))
    return Curve(
        run_id="1", settings=settings, history=history, test_history=history, test_values=(history[-1][1] - 0.01,)
    )


GRID = {A: {"grid": [0.1, 0.3, 1.0, 3.0, 10.0]}, DECAY: {"grid": [0.001, 0.01, 0.1]}}


def build_grid(accuracy: dict[tuple[float, float], float]) -> SearchRecord:
    """Builds trials over A and λ."""
    trials = [build_trial(i, {A: a, DECAY: decay}, value) for i, ((a, decay), value) in enumerate(accuracy.items())]
    return build_search(trials, GRID)


# Sensitivity


def compute_degradations(record: SearchRecord) -> dict[tuple[str, str, int], float | None]:
    return {(fall.regularizer, fall.key, fall.factor): fall.fall for fall in compute_sensitivity(record).falls}


def test_degradation_is_the_worse_of_both_directions():
    # the best has A = 1; 0.3 and 3 differ by factors of 3.33 and 3, 0.1 and 10 by 10
    record = build_grid({(0.1, 0.01): 0.5, (0.3, 0.01): 0.86, (1.0, 0.01): 0.9, (3.0, 0.01): 0.88, (10.0, 0.01): 0.7})
    degradations = compute_degradations(record)
    assert degradations["fednar", A, 3] == pytest.approx(0.04)
    assert degradations["fednar", A, 10] == pytest.approx(0.4)
    assert degradations["fednar", DECAY, 3] is degradations["fednar", DECAY, 10] is None


def test_trials_that_differ_in_two_keys_are_ignored():
    record = build_grid({(1.0, 0.01): 0.9, (10.0, 0.1): 0.2, (10.0, 0.01): 0.85, (1.0, 0.1): 0.6})
    degradations = compute_degradations(record)
    assert degradations["fednar", A, 10] == pytest.approx(0.05)
    assert degradations["fednar", DECAY, 10] == pytest.approx(0.3)
    assert compute_sensitivity(record).average("fednar", 10) == pytest.approx((0.05 + 0.3) / 2)
    assert compute_sensitivity(record).average("fednar", 3) is None


@pytest.mark.parametrize(
    ("off", "factor"),
    [(3.33, 3), (2.62, 3), (2.6, None), (3.46, None), (8.7, 10), (11.4, 10), (11.6, None), (1.0, None), (100.0, None)],
)
@pytest.mark.parametrize("inverted", [False, True])
def test_factors_of_about_three_and_ten_are_recognized_in_both_directions(off, factor, inverted):
    record = build_grid({(1.0, 0.01): 0.9, (1 / off if inverted else off, 0.01): 0.8})
    degradations = compute_degradations(record)
    assert {key[2] for key, fall in degradations.items() if fall is not None} == ({factor} if factor else set())


def test_an_annealing_rate_is_compared_by_its_distance_from_one():
    space = {DECAY_ANNEAL: {"grid": [0.7, 0.9, 0.97, 0.99]}}
    accuracy = {0.7: 0.3, 0.9: 0.6, 0.97: 0.8, 0.99: 0.65}  # 1 − γ = 0.3, 0.1, 0.03, 0.01
    record = build_search(
        [build_trial(i, {DECAY_ANNEAL: g}, value) for i, (g, value) in enumerate(accuracy.items())], space
    )
    degradations = compute_degradations(record)
    assert degradations["fednar", DECAY_ANNEAL, 3] == pytest.approx(
        0.2
    )  # 1 − 0.9 is 3.33 times as large, 1 − 0.99 is a third
    assert degradations["fednar", DECAY_ANNEAL, 10] == pytest.approx(0.5)


def test_a_rate_of_one_cannot_be_off_by_a_factor():
    space = {DECAY_ANNEAL: {"grid": [0.9, 1.0]}}
    record = build_search([build_trial(0, {DECAY_ANNEAL: 1.0}, 0.9), build_trial(1, {DECAY_ANNEAL: 0.9}, 0.8)], space)
    assert set(compute_degradations(record).values()) == {None}


def build_two_regularizers() -> SearchRecord:
    accuracy = {
        ("fednar", 1.0): 0.9, ("fednar", 10.0): 0.879, ("fednar", 0.1): 0.89,
        ("decoupled", 0.1): 0.8, ("decoupled", 1.0): 0.597, ("decoupled", 10.0): 0.1,
    }  # fmt: skip
    trials = [build_trial(i, {NAME: name, A: a}, value) for i, ((name, a), value) in enumerate(accuracy.items())]
    return build_search(trials, {NAME: {"grid": ["decoupled", "fednar"]}, A: {"grid": [0.1, 1.0, 10.0]}})


def test_each_regularizer_is_compared_with_its_own_best_trial():
    record = build_two_regularizers()
    degradations = compute_degradations(record)
    assert degradations["fednar", A, 10] == pytest.approx(0.021)
    assert degradations["decoupled", A, 10] == pytest.approx(
        0.203
    )  # its best has A = 0.1; 10 differs by a factor of 100
    assert describe_sensitivity(record, compute_sensitivity(record)) == [
        "With one setting off by 10 times, the loss in points of validation accuracy: decoupled 20.3, fednar 2.1."
    ]


def test_a_metric_to_be_minimized_degrades_upwards():
    record = build_grid({(1.0, 0.01): 0.2, (10.0, 0.01): 0.7})
    losses = build_search(list(record.trials), GRID, mode="min", metric="validation_loss")
    assert compute_degradations(losses)["fednar", A, 10] == pytest.approx(0.5)
    assert "loss in validation loss: fednar 0.500" in describe_sensitivity(losses, compute_sensitivity(losses))[0]


def test_only_finished_trials_are_included_and_failures_are_counted():
    space = {A: {"grid": [1.0, 3.0, 10.0]}}
    record = build_search(
        [
            build_trial(0, {A: 1.0}, 0.9),
            build_trial(1, {A: 3.0}, 0.95, status="stopped early"),
            build_trial(2, {A: 10.0}, None, status="failed"),
        ],
        space,
    )
    assert record.best_trial == record.trials[0]
    assert set(compute_degradations(record).values()) == {None}
    assert {fall.factor: fall.failed for fall in compute_sensitivity(record).falls} == {3: 0, 10: 1}


# Heat maps, scales, importances


def test_a_cell_is_the_mean_over_all_other_keys():
    points = [(0.1, 0.01, 0.4), (0.1, 0.01, 0.6), (1.0, 0.01, 0.7), (1.0, 0.1, 0.9)]
    trials = [build_trial(i, {A: a, DECAY: decay}, value) for i, (a, decay, value) in enumerate(points)]
    means = compute_cell_means(trials, A, DECAY, [0.1, 1.0], [0.01, 0.1])
    np.testing.assert_allclose(means, [[0.5, 0.7], [np.nan, 0.9]])


def test_a_bin_is_the_mean_of_the_points_inside():
    places = np.array([[0.1, 0.1], [0.2, 0.4], [0.9, 0.1], [0.6, 0.9]])  # x, y
    edges = [np.array([0, 0.5, 1.0])] * 2
    means = compute_binned_means(places, np.array([1.0, 3.0, 5.0, 7.0]), edges)
    np.testing.assert_allclose(means, [[2, 5], [np.nan, 7]])


def test_heat_maps_pair_the_clip_bound_with_searched_annealing_rates_and_weight_decay():
    space = {key: {"uniform": [0.1, 0.9]} for key in (DECAY_ANNEAL, A, LR, DECAY)}
    assert list_pairs(build_search([], space)) == [(A, DECAY_ANNEAL), (A, DECAY)]
    del space[A]
    assert list_pairs(build_search([], space)) == []


@pytest.mark.parametrize(
    ("kind", "values", "log"),
    [
        ("loguniform", [1.0, 2.0], True),
        ("uniform", [1.0, 2.0], False),
        ("uniform", [1.0, 10.0], False),
        ("uniform", [1.0, 11.0], True),
        ("uniform", [0.0, 11.0], False),
        ("grid", [0.01, 0.1, 1], True),
    ],
)
def test_an_axis_is_logarithmic_if_the_search_is_or_if_it_spans_more_than_a_decade(kind, values, log):
    record = build_search([build_trial(i, {A: value}, 0.5) for i, value in enumerate(values)], {A: {kind: values}})
    scale = build_axis_scale(record, A, record.trials)
    assert scale.log is log
    assert [scale.compute_position(value) for value in (values[0], values[-1])] == [0, 1]
    middle = math.sqrt(values[0] * values[-1]) if log else (values[0] + values[-1]) / 2
    assert scale.compute_position(middle) == pytest.approx(0.5)
    assert all(0 <= scale.compute_share(place) <= 1 + 1e-6 for place, _ in scale.list_ticks())
    assert len(scale.list_ticks()) > 1


def test_labels_on_plots_have_the_symbols_of_the_page():
    for key in (A, DECAY, DECAY_ANNEAL, LR, NAME, "model.hidden"):
        assert build_label(key).replace("$", "") == build_plain_label(key)
    assert build_plain_label(DECAY) == "weight decay λ"


def test_words_and_null_are_categories_in_the_order_of_the_space():
    values = ["fednar", None, True]
    record = build_search(
        [build_trial(i, {NAME: v}, 0.5) for i, v in enumerate(values)], {NAME: {"choice": [None, True, "fednar"]}}
    )
    scale = build_axis_scale(record, NAME, record.trials)
    assert scale.categories == ("null", "true", "fednar")
    assert [scale.compute_position(value) for value in values] == [1, 0, 0.5]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_few_very_bad_trials_do_not_use_up_the_color_scale(mode):
    sign = 1 if mode == "max" else -1
    values = [sign * value for value in (0.95, 0.94, 0.93, 0.92, 0.90, 0.1)]
    colors = build_color_scale(build_search([], GRID, mode=mode), values)
    good, fair = (colors.norm(sign * value) for value in (0.95, 0.925))
    assert abs(good - fair) == pytest.approx(0.25)
    assert colors.extend == ("min" if mode == "max" else "max")


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_only_influential_key_is_the_most_important(mode):
    rng = np.random.default_rng(0)
    trials = []
    for i in range(30):
        a, rate, name = 10 ** rng.uniform(-1, 1), rng.uniform(0.9, 1), ["fednar", "decoupled"][i % 2]
        trials.append(build_trial(i, {DECAY_ANNEAL: rate, A: a, NAME: name}, 0.5 + 0.2 * math.log10(a)))
    space = {
        DECAY_ANNEAL: {"uniform": [0.9, 1]},
        A: {"loguniform": [0.1, 10]},
        NAME: {"choice": ["fednar", "decoupled"]},
    }
    record = build_search(trials, space, mode=mode)
    shares = compute_importances(record)
    assert next(iter(shares)) == A
    assert shares[A] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert compute_importances(record) == shares


def test_a_categorical_key_can_be_the_most_important():
    trials = [
        build_trial(i, {A: 1.0 + i, NAME: name}, 0.9 if name == "fednar" else 0.4)
        for i, name in enumerate(["fednar", "none"] * 6)
    ]
    record = build_search(trials, {A: {"uniform": [1, 20]}, NAME: {"choice": ["fednar", "none"]}})
    assert next(iter(compute_importances(record))) == NAME


def test_meaningless_importances_are_refused_with_the_reason():
    space = {A: {"uniform": [1, 20]}}
    few = [build_trial(i, {A: 1.0 + i}, 0.1 * i) for i in range(8)]
    assert "there are 8" in (explain_missing_importances(build_search(few, space)) or "")
    alike = [build_trial(i, {A: 1.0 + i}, 0.5) for i in range(9)]
    assert "same value" in (explain_missing_importances(build_search(alike, space)) or "")
    still = [build_trial(i, {A: 1.0}, 0.1 * i) for i in range(9)]
    assert "two values" in (explain_missing_importances(build_search(still, space)) or "")
    assert explain_missing_importances(build_search([*few, build_trial(8, {A: 9.0}, 0.9)], space)) is None


# The table and the facts


def build_mixed(**changes: Any) -> SearchRecord:
    trials = [
        build_trial(0, {A: 1.0}, 0.8),
        build_trial(1, {A: 2.0}, 0.9),
        build_trial(2, {A: 3.0}, 0.95, status="stopped early"),
        build_trial(3, {A: 4.0}, None, status="failed"),
        build_trial(4, {A: 5.0}, 0.3, status="unfinished"),
        build_trial(5, {A: 6.0}, 0.9),
    ]
    return build_search(trials, {A: {"uniform": [1, 6]}}, **changes)


def test_the_best_comes_first_and_failures_last():
    assert [t.name[-1] for t in rank_trials(build_mixed())] == ["1", "5", "0", "2", "4", "3"]
    assert [t.name[-1] for t in rank_trials(build_mixed(mode="min"))] == ["0", "1", "5", "2", "4", "3"]
    for mode in ("max", "min"):  # the terminal and MLflow have the order of the page, also among equals
        record = build_mixed(mode=mode)
        tied = [replace(record.trials[1], name=f"trial-{number:04d}") for number in (9, 7, 10000)]
        record = replace(record, trials=(*record.trials, *tied))
        entries = {
            str(index): TrialEntry(name=each.name, values={}, status=each.status, value=each.value)
            for index, each in enumerate(record.trials)
        }
        entries["4"].status = RUNNING  # which is unfinished in MLflow
        table = TrialTable(name="small", tracking_uri="", experiment_id="0", trials=entries)
        names = [trial.name for trial in rank_trials(record)]
        assert [entry.name for entry in table.rank(mode)] == names
        first = names.index("trial-0001")
        equals = ["trial-0001", "trial-0005", "trial-0007", "trial-0009", "trial-10000"]
        assert names[first : first + 5] == equals
        assert (table.find_best(mode).name, record.best_trial.name) == (names[0], names[0])
    assert tabulate_trials(build_mixed())[0] == {
        "trial": "trial-0001", "status": "finished", "rounds": ROUNDS, "validation_accuracy": 0.9, A: 2.0
    }  # fmt: skip


def test_the_summary_counts_rounds_over_seeds_and_rounds_saved_by_stopping():
    facts = compute_search_facts(build_mixed(seeds=3, best=build_curve(0.9), baseline=build_curve(0.7)))
    assert facts.statuses == {"finished": 3, "stopped early": 1, "unfinished": 1, "failed": 1}
    assert (facts.best_trial, facts.best_value, facts.best_values) == ("trial-0001", 0.9, {A: 2.0})
    assert facts.rounds_trained == 3 * (3 * ROUNDS + 2 + 2)
    assert facts.rounds_saved == 3 * (ROUNDS - 2)
    assert facts.baseline_value == pytest.approx(0.7)
    assert (facts.best_test_value, facts.baseline_test_value) == pytest.approx((0.89, 0.69))


# The report as files


class Outside(HTMLParser):
    """Collects the resources that a browser would fetch, and the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def read_page(path: Path) -> tuple[str, Outside]:
    page, outside = path.read_text(encoding="utf-8"), Outside()
    outside.feed(page)
    return page, outside


def build_sampled(trials: int, mode: str = "max") -> SearchRecord:
    """Builds a search over four keys, one of them categorical, with trials of every status."""
    rng = np.random.default_rng(1)
    space = {
        A: {"loguniform": [0.1, 30.0]},
        DECAY: {"loguniform": [1e-4, 0.1]},
        DECAY_ANNEAL: {"uniform": [0.9, 1.0]},
        NAME: {"choice": ["fednar", "decoupled"]},
    }
    made = []
    for i in range(trials):
        status = ["finished", "finished", "stopped early", "failed", "unfinished"][i % 5]
        values = {
            A: 10 ** rng.uniform(-1, 1.4),
            DECAY: 10 ** rng.uniform(-4, -1),
            DECAY_ANNEAL: rng.uniform(0.9, 1),
            NAME: ["fednar", "decoupled"][i // 5 % 2],
        }
        made.append(build_trial(i, values, None if status == "failed" else rng.uniform(0.5, 0.9), status))
    metric = "validation_accuracy" if mode == "max" else "train_loss"
    return build_search(
        made, space, mode=mode, metric=metric, best=build_curve(0.9), baseline=build_curve(0.7, **{A: 10.0})
    )


SEARCHES = {
    "grid of two regularizers": build_two_regularizers,
    "grid with holes": lambda: build_grid({(0.1, 0.01): 0.5, (1.0, 0.01): 0.9, (1.0, 0.1): 0.7, (10.0, 0.001): 0.8}),
    "sampled": lambda: build_sampled(20),
    "minimized": lambda: build_sampled(20, mode="min"),
    "one trial": lambda: replace(build_sampled(1), baseline_changes={NAME: "decoupled"}),
    "one trial of a grid": lambda: build_grid({(1.0, 0.01): 0.9}),
    "alike": lambda: build_grid({(1.0, 0.01): 0.9, (3.0, 0.01): 0.9, (1.0, 0.1): 0.9, (3.0, 0.1): 0.9}),
}


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_report_is_one_page_without_external_resources(kind, tmp_path):
    record = SEARCHES[kind]()
    report = write_report(record, tmp_path / "new" / "report")
    page, outside = read_page(report.page)
    assert set(report.files) == set((tmp_path / "new" / "report").iterdir())
    assert not outside.addresses
    assert not {"script", "link"} & set(outside.tags)
    assert "http" not in re.sub(r"base64,[^\"]*|xmlns(:xlink)?=\"[^\"]*\"", "", page)
    assert len(page) < 2_000_000
    assert re.search(r"<h2>How much a wrong setting costs</h2>\s*<p>[A-Z][^<]+\.</p>", page)
    assert "λ₀" not in page  # one symbol per page
    assert ("The baseline has the settings from before the search" in page) == (record.baseline_changes is not None)
    maps = len(list_pairs(record)) if len(record.finished) >= LEAST_TRIALS else 0
    assert outside.tags.count("figure") == page.count("<svg role=") >= 1 + maps
    height, width, _ = imread(report.page.with_name("best_and_baseline.png")).shape
    assert (width, height) == (880, 528)
    with (report.page.parent / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    mattered = [] if explain_missing_importances(record) else list(compute_importances(record))
    columns = ["trial", record.metric, *mattered, *(key for key in record.space if key not in mattered)]
    assert list(rows[0]) == [*columns, "status", "rounds"]
    assert [row["trial"] for row in rows] == [t.name for t in rank_trials(record)]
    assert float(rows[0][record.metric]) == rank_trials(record)[0].value
    degradations = json.loads((report.page.parent / "sensitivity.json").read_text(encoding="utf-8"))
    assert len(degradations["falls"]) == len(report.sensitivity.falls)


@pytest.mark.parametrize(
    "trials", [[], [("failed", None)], [("stopped early", 0.4), ("unfinished", 0.3), ("failed", None)]], ids=len
)
def test_the_report_of_a_search_without_a_finished_trial_states_it(trials, tmp_path):
    made = [build_trial(i, {A: 1.0 + i, DECAY: 0.1}, value, status) for i, (status, value) in enumerate(trials)]
    report = write_report(build_search(made, GRID), tmp_path)
    page, outside = read_page(report.page)
    assert outside.tags.count("figure") == any(value for _, value in trials)  # over rounds
    assert f"None of {len(trials)} trials ran all rounds" in page
    assert page.count("there are 0") == 2
    assert (report.facts.best_trial, report.facts.best_value) == (None, None)


def test_a_search_answers_with_its_best_trial_and_the_difference_to_the_baseline():
    best, baseline = (
        replace(build_curve(0.9), test_values=(0.90, 0.93)),
        replace(build_curve(0.7), test_values=(0.8, 0.81)),
    )
    record = build_mixed(best=best, baseline=baseline)
    low, high = stats.ttest_1samp([0.10, 0.12], 0).confidence_interval(0.95)
    first, second = describe_search(SearchOutcome.of_record(record))
    assert first.startswith("The best of 6 trials reaches a validation accuracy of 0.900; trained again, it ends at a ")
    assert f"+11.0 points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}), ".replace("-", "−") in first
    assert second == "It has clip bound A = 2."
    alone = build_mixed(best=replace(best, test_values=(0.9,)), baseline=replace(baseline, test_values=(0.8,)))
    assert "cannot tell it from luck" in next(describe_search(SearchOutcome.of_record(alone)))


def test_names_from_a_search_are_escaped_on_the_page(tmp_path):
    evil = r"<script>alert('$\x$')</script>"  # and an invalid formula for Matplotlib
    space = {NAME: {"choice": [evil, "fednar"]}, A: {"uniform": [1, 9]}}
    trials = [build_trial(i, {NAME: [evil, "fednar"][i % 2], A: 1.0 + i}, 0.1 * i) for i in range(4)]
    report = write_report(build_search(trials, space, name=evil, scheduler=evil), tmp_path)
    page, outside = read_page(report.page)
    assert "script" not in outside.tags
    assert page.count(str(markupsafe.escape(evil))) >= 5


def test_the_same_search_gives_the_same_report(tmp_path):
    first, again = (write_report(build_sampled(20), tmp_path / name) for name in ("first", "again"))
    for one, other in zip(first.files, again.files, strict=True):
        assert one.read_bytes() == other.read_bytes()


# From MLflow


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return create_store(tmp_path_factory.mktemp("store") / "m.db")


@pytest.fixture(scope="module")
def client(uri: str) -> MlflowClient:
    return MlflowClient(uri)


def load_records(
    client: MlflowClient, experiment: str, name: str, tags: dict[str, str], params: dict[str, str], **metrics: Any
) -> str:
    """Records a run with its metrics, given as {round: value}."""
    run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    points = [
        Metric(name_in_mlflow(key), value, 1, step) for key, values in metrics.items() for step, value in values.items()
    ]
    client.log_batch(run_id, metrics=points, params=[Param(key, value) for key, value in params.items()])
    return str(run_id)


def record_search(client: MlflowClient, experiment: str, name: str, **changes: str) -> str:
    about = {
        "search.metric": "validation_accuracy",
        "search.mode": "max",
        "search.algorithm": "optuna",
        "search.scheduler": "asha",
        "search.trials": "3",
        "search.seeds": "2",
        "search.space": json.dumps({A: {"loguniform": [0.1, 30.0]}, NAME: {"choice": ["fednar", "none"]}}),
        "federation.rounds": "4",
        A: "10.0",
        "algorithm.epsilon": "1e-05",
    }
    tags = {"fednar.kind": "search", "fednar.search": name}
    return load_records(client, experiment, name, tags, {**about, **changes})


def test_a_search_is_read_back_from_its_store(client, uri):
    experiment = client.create_experiment("digits")
    parent = record_search(client, experiment, "first")
    child = {"mlflow.parentRunId": parent}

    def one(name: str, kind: str, status: str | None, values: dict[str, str], *accuracy: float, **more: Any) -> str:
        tags = {**child, "fednar.kind": kind, **({"fednar.status": status} if status else {})}
        history = {"validation_accuracy": dict(enumerate(accuracy)), "train_loss": dict.fromkeys(range(9), 1.0)}
        return load_records(client, experiment, name, tags, values, **(history if accuracy else {}), **more)

    one("trial-0001", "trial", "finished", {A: "0.30000000000000004", NAME: "none"}, 0.1, 0.2, 0.3, 0.4)
    one("trial-0000", "trial", "finished", {A: "1e+01", NAME: "fednar"}, 0.2, 0.4, 0.5, 0.6)
    one("trial-0002", "trial", "stopped early", {A: "3", NAME: "fednar"}, 0.1, 0.7)
    one("trial-0003", "trial", "failed", {A: "1", NAME: "fednar"})
    one("trial-0004", "trial", None, {A: "2.5", NAME: "fednar"}, 0.3)
    one("trial-0005", "trial", None, {})  # created, but not started
    tests = {"test_accuracy": {0: 0.15, 3: 0.58}, "clip_fraction": {0: 0.75, 1: 0.25}}
    best = one("best", "best", None, {A: "1e+01", "checkpoint.every": "10"}, 0.2, 0.4, 0.5, 0.6, **tests)
    one("baseline", "baseline", None, {A: "5.0"}, 0.1, 0.3)
    one("stranger", "run", None, {A: "5.0", NAME: "none"}, 0.99)
    load_records(
        client, experiment, "trial-0006", {"fednar.kind": "trial", "mlflow.parentRunId": "another"}, {A: "1", NAME: "x"}
    )

    record = read_search(uri, "first")
    assert (record.name, record.run_id, record.metric) == ("first", parent, "validation_accuracy")
    assert (record.mode, record.seeds) == ("max", 2)
    assert record.settings == {"federation.rounds": 4, A: 10.0, "algorithm.epsilon": 1e-5}
    assert record.space[NAME] == {"choice": ["fednar", "none"]}
    assert [(t.name, t.status, t.rounds, t.value) for t in record.trials] == [
        ("trial-0000", "finished", 4, 0.6),
        ("trial-0001", "finished", 4, 0.4),
        ("trial-0002", "stopped early", 2, 0.7),
        ("trial-0003", "failed", 0, None),
        ("trial-0004", "unfinished", 1, 0.3),
    ]
    assert record.trials[0].values == {A: 10.0, NAME: "fednar"}
    assert record.trials[1].values == {A: 0.30000000000000004, NAME: "none"}
    assert record.best_trial == record.trials[0]
    assert record.best == Curve(
        run_id=best,
        settings={A: 10.0, "checkpoint.every": 10},
        history=((0, 0.2), (1, 0.4), (2, 0.5), (3, 0.6)),
        test_history=((0, 0.15), (3, 0.58)),
        test_values=(0.58,),
        clipped=0.5,
    )
    assert record.test_metric == "test_accuracy"
    assert record.baseline is not None
    assert (record.baseline.test_history, record.baseline.test_value) == ((), None)


def test_the_best_and_the_baseline_are_judged_by_the_primary_metric(client, uri, tmp_path):
    parent = record_search(client, client.create_experiment("rare"), "rare", **{"search.metric": "validation_auc"})
    for kind, auc in (("best", 0.81), ("baseline", 0.72)):
        tags = {"mlflow.parentRunId": parent, "fednar.kind": kind, "fednar.primary": "auc"}
        metrics = {"validation_auc": {3: auc}, "test_auc": {3: auc - 0.02}, "test_accuracy": {3: 0.97}}
        load_records(client, client.get_run(parent).info.experiment_id, kind, tags, {A: "1"}, **metrics)
    record = read_search(uri, "rare")
    assert record.test_metric == "test_auc"
    assert record.best is not None
    assert record.best.test_value == pytest.approx(0.79)
    page = write_report(record, tmp_path).page.read_text(encoding="utf-8")
    assert "<dt>test auc of the best</dt><dd>0.790 <small>baseline: 0.700</small></dd>" in page
    assert "test accuracy" not in page


def test_the_best_and_the_baseline_are_means_over_their_seeds(client, uri):
    experiment = client.create_experiment("seeds")
    parent = record_search(client, experiment, "seeds", **{"best.regularizer.clip_bound": "3"})
    for kind, seed, values in (
        ("best, another seed", 1, {0: 0.2, 2: 0.6}),
        ("best", 0, {0: 0.4, 1: 0.5, 2: 0.9}),
        ("best, another seed", 2, {0: 0.3, 1: 0.1, 2: 0.6}),
    ):
        tags = {"mlflow.parentRunId": parent, "fednar.kind": kind}
        metrics = {"validation_accuracy": values, "test_accuracy": {2: values[2] - 0.3}}
        load_records(client, experiment, f"{kind} {seed}", tags, {"seed": str(seed)}, **metrics)
    record = read_search(uri, "seeds")
    assert record.best is not None
    assert record.best.settings == {"seed": 0}
    assert record.best.history == ((0, pytest.approx(0.3)), (2, pytest.approx(0.7)))
    assert record.best.test_history == ((2, pytest.approx(0.4)),)
    assert record.best.test_value == pytest.approx(0.4)
    assert record.baseline is None
    assert set(record.settings) == {"federation.rounds", A, "algorithm.epsilon"}


def test_a_search_without_its_settings_is_refused(client, uri):
    load_records(client, "0", "young", {"fednar.kind": "search", "fednar.search": "young"}, {"seed": "1"})
    with pytest.raises(BadInput, match="does not have the settings of the search 'young' yet"):
        read_search(uri, "young")


def test_the_later_values_of_rounds_that_were_trained_twice_are_used(client, uri):
    experiment = client.create_experiment("twice")
    parent = record_search(client, experiment, "twice")
    tags = {"mlflow.parentRunId": parent, "fednar.kind": "trial", "fednar.status": "finished"}
    run_id = client.create_run(experiment, run_name="trial-0000", tags=tags).info.run_id
    points = [(0, 0.1, 1), (1, 0.2, 2), (2, 0.3, 3), (1, 0.5, 4), (2, 0.6, 5)]
    metrics = [Metric(name_in_mlflow("validation_accuracy"), value, time, step) for step, value, time in points]
    client.log_batch(run_id, metrics=metrics, params=[Param(A, "1"), Param(NAME, "none")])
    assert read_search(uri, "twice").trials[0].history == ((0, 0.1), (1, 0.5), (2, 0.6))


def test_the_newest_search_of_a_name_is_read_from_any_experiment(client, uri):
    old, new = (client.create_experiment(name) for name in ("old", "new"))
    record_search(client, old, "again")
    newest = record_search(client, new, "again", **{"search.mode": "min"})
    record = read_search(uri, "again")
    assert (record.run_id, record.mode, record.trials, record.best) == (newest, "min", (), None)


def test_an_unknown_search_is_refused_with_the_known_ones(client, uri, tmp_path):
    record_search(client, "0", "here")
    with pytest.raises(BadInput, match=r"m\.db has no search of the name 'hare'; it has .*here"):
        read_search(uri, "hare")
    with pytest.raises(BadInput, match="it has no searches"):
        read_search(f"sqlite:///{tmp_path}/empty.db", "hare")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-05", 1e-5), ("0.3", 0.3), ("7", 7), ("true", True), ("True", True), ("null", None), ("fednar", "fednar"),
        ("[1, 2]", [1, 2]), ("fedavgm+exp", "fedavgm+exp"), ("a: b: c", "a: b: c"), ("2024-13-45", "2024-13-45"),
    ],
)  # fmt: skip
def test_a_parameter_is_parsed_to_its_original_value(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)
