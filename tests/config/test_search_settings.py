"""Valid search sections, and the errors for invalid ones."""

from typing import Any

import pytest
import yaml

import fednar_ray as fr
from fednar_ray.config import Document, Domain, load_embedded
from fednar_ray.config.loading import parse_document
from fednar_ray.tuning.resources import count_fitting_trials
from fednar_ray.tuning.strategy import count_trials, list_grid_points

A = "regularizer.clip_bound"


def build_document(search: Any, *overrides: str, **experiment: Any) -> Document:
    base = {
        "name": "small",
        "data": {"source": "digits", "validation": 0.1, "partition": {"kind": "iid", "clients": 4}},
        "model": {"name": "mlp", "hidden": 4},
        "federation": {"rounds": 6, "local_steps": 1},
    }
    text = yaml.safe_dump({"experiment": {**base, **experiment}, "search": search})
    return parse_document(text, "f.yaml", overrides, to_search=True)


def find_problems(search: Any, *overrides: str, **experiment: Any) -> tuple[str, ...]:
    with pytest.raises(fr.ConfigError) as raised:
        build_document(search, *overrides, **experiment)
    return raised.value.problems


ONE = {A: {"uniform": [1, 2]}}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no space": ({}, "search.space: Field required"),
    "empty space": ({"space": {}}, "search.space: Dictionary should have at least 1 item"),
    "unknown key": (
        {"space": {"regularizer.clip_bond": {"uniform": [1, 2]}}},
        "search.space.regularizer.clip_bond: regularizer.clip_bond: 1: unknown key; did you mean clip_bound?",
    ),
    "out of its range": (
        {"space": {"regularizer.weight_decay_anneal": {"uniform": [0.9, 1.1]}}},
        "search.space.regularizer.weight_decay_anneal: regularizer.weight_decay_anneal: 1.1 should be less than",
    ),
    "inverted": ({"space": {A: {"uniform": [2, 1]}}}, "the range from 2 to 1 is inverted"),
    "empty": ({"space": {A: {"uniform": [2, 2]}}}, "the range from 2 to 2 is empty"),
    "log of zero": ({"space": {A: {"loguniform": [0, 2]}}}, "loguniform takes [low, high], both above 0"),
    "text": ({"space": {A: {"uniform": ["a", 2]}}}, "uniform takes [low, high]"),
    "three ends": ({"space": {A: {"uniform": [1, 2, 3]}}}, "uniform takes [low, high]"),
    "step too long": ({"space": {A: {"quniform": [1, 2, 5]}}}, "the step 5 is not within the range from 1 to 2"),
    "fractions": ({"space": {A: {"randint": [1.5, 2]}}}, "randint takes [low, high), whole numbers"),
    "no choice": ({"space": {A: {"choice": []}}}, "choice is empty"),
    "same choice twice": ({"space": {A: {"choice": [1, 1]}}}, "choice lists a value twice"),
    "unknown domain": ({"space": {A: {"gauss": [1, 2]}}}, "unknown domain; known here: uniform"),
    "near domain": ({"space": {A: {"logunifrom": [1, 2]}}}, "unknown domain; did you mean loguniform?"),
    "bare value": ({"space": {A: 3}}, "should be one of uniform"),
    "where it trains": (
        {"space": {"execution.actors": {"choice": [1, 2]}}},
        "search.space.execution.actors: execution does not change what is trained",
    ),
    "how long": ({"space": {"federation.rounds": {"choice": [5, 10]}}}, "trials of different lengths cannot be"),
    "grid elsewhere": ({"space": {A: {"grid": [1, 2]}}}, "grid needs search.algorithm: grid; with optuna, use choice"),
    "grid of a range": (
        {"space": ONE, "algorithm": "grid"},
        "search.algorithm: grid takes grid and choice, not uniform",
    ),
    "test accuracy": ({"space": ONE, "metric": "test_accuracy"}, "a test metric cannot guide a search"),
    "unknown metric": (
        {"space": ONE, "metric": "validation_acuracy"},
        "search.metric: 'validation_acuracy': unknown metric; did you mean validation_accuracy?",
    ),
    "federated metric": ({"space": ONE, "metric": "client_accuracy_mean"}, "set evaluation.federated=true"),
    "federated error": ({"space": ONE, "metric": "client_rmse_mean", "mode": "min"}, "set evaluation.federated=true"),
    "wrong mode of a client's error": (
        {"space": ONE, "metric": "client_rmse_mean", "mode": "max"},
        "search.mode: 'max': client_rmse_mean is better lower",
    ),
    "nothing held out in a trial": (
        {"space": {"data.validation": {"choice": [0, 0.2]}}},
        "search.space.data.validation: 0: a trial with it does not report the primary metric on held-out examples; "
        "remove it",
    ),
    "nothing held out at a range's end": (
        {"space": {"data.validation": {"uniform": [0, 0.2]}}, "metric": "validation_accuracy"},
        "search.space.data.validation: 0: a trial with it does not report validation_accuracy",
    ),
    "not evaluated in a trial": (
        {
            "space": {"evaluation.federated": {"choice": [True, False]}},
            "metric": "client_accuracy_mean",
        },
        "search.space.evaluation.federated: False: a trial with it does not report client_accuracy_mean",
    ),
    "wrong mode": (
        {"space": ONE, "metric": "validation_accuracy", "mode": "min"},
        "search.mode: 'min': validation_accuracy is better higher",
    ),
    "too much grace": (
        {"space": ONE, "scheduler": {"name": "asha", "grace_rounds": 6}},
        "search.scheduler.grace_rounds: 6 should be less than federation.rounds (6)",
    ),
    "unread": (
        {"space": ONE, "scheduler": {"name": "median", "reduction": 3}},
        "median does not read reduction: it belongs to asha, hyperband",
    ),
    "reports between rungs": (
        {"space": ONE, "scheduler": {"name": "asha", "grace_rounds": 3}, "report_rounds": 2},
        "search.report_rounds: 2 does not divide search.scheduler.grace_rounds (3)",
    ),
    "pbt by optuna": (
        {"space": ONE, "scheduler": {"name": "pbt", "perturb_rounds": 2}},
        "pbt changes the values of its trials",
    ),
    "small population": (
        {"space": ONE, "scheduler": {"name": "pbt", "perturb_rounds": 2}, "algorithm": "random", "trials": 3},
        "search.trials: 3 is too few for pbt; use at least 4",
    ),
    "pbt of a preset": (
        {
            "space": {"algorithm.name": {"choice": ["fedavg", "fedadam"]}},
            "scheduler": {"name": "pbt", "perturb_rounds": 2},
            "algorithm": "random",
        },
        "search.space.algorithm.name: cannot change within a run",
    ),
    "foreign point": (
        {"space": ONE, "points": [{"regularizer.weight_decay": 0.1}]},
        "search.points.0: regularizer.weight_decay is not in search.space",
    ),
    "impossible point": ({"space": ONE, "points": [{A: -1}]}, "search.points.0: regularizer.clip_bound: -1 should"),
    "bad baseline": (
        {"space": ONE, "baseline": {"regularizer.name": "fednor"}},
        "search.baseline: regularizer.name: 'fednor' should be 'fednar'",
    ),
    "no trial in a pack": ({"space": ONE, "pack": 0}, "search.pack: 0 should be auto, off or a whole number from 1"),
    "half a pack": ({"space": ONE, "pack": "half"}, "search.pack: 'half' should be auto, off or a whole number from 1"),
    "no trial at a time": ({"space": ONE, "concurrent": 0}, "search.concurrent: 0 should be auto or a whole number"),
    "unknown setting": ({"space": ONE, "trails": 3}, "search.trails: 3: unknown key; did you mean trials?"),
    "a word": ("nonsense", "search: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_invalid_search_is_refused_with_a_remedy(case: str) -> None:
    search, text = WRONG[case]
    problems = find_problems(search)
    assert any(text in problem for problem in problems), problems


def test_validation_needs_held_out_examples() -> None:
    data = {"source": "digits", "partition": {"kind": "iid", "clients": 4}}
    assert find_problems({"space": ONE}, data=data) == (
        "search.metric: 'auto': no examples are held out; set data.validation=0.1",
    )


def test_all_problems_are_reported_at_once() -> None:
    space = {A: {"uniform": [-1, 2]}, "model.hiden": {"choice": [4, 8]}}
    problems = find_problems(
        {"space": space, "metric": "test_loss", "mode": "max", "scheduler": "asha"}, "compare.seeds=0"
    )
    for place in ("compare.seeds", f"search.space.{A}", "search.space.model.hiden", "search.metric", "search.mode"):
        assert sum(problem.startswith(place) for problem in problems) == 1, (place, problems)


def test_overrides_can_address_keys_with_dots() -> None:
    changed = build_document(
        {"space": ONE}, "search.space.algorithm.local_lr={loguniform: [0.01, 1]}", "search.trials=3"
    )
    assert changed.search is not None
    assert changed.search.trials == 3
    assert changed.search.space["algorithm.local_lr"] == Domain(kind="loguniform", values=(0.01, 1))
    assert set(changed.search.space) == {A, "algorithm.local_lr"}


@pytest.mark.parametrize(
    ("given", "pack"), [("off", "off"), ("false", "off"), ("on", "auto"), ("true", "auto"), ("auto", "auto"), ("8", 8)]
)
def test_packs_are_switched_by_words_and_by_booleans(given: str, pack: str | int) -> None:
    switched = [build_document({"space": ONE}, f"search.pack={given}"), build_document({"space": ONE, "pack": pack})]
    switched.append(build_document({"space": ONE, "pack": yaml.safe_load(given)}))
    assert [each.search.pack for each in switched if each.search is not None] == [pack] * 3


def test_a_file_without_a_search_has_none_and_cannot_be_tuned() -> None:
    assert load_embedded("silos").search is None
    with pytest.raises(fr.ConfigError, match=r"search: missing in silos\.yaml"):
        load_embedded("silos", to_search=True)


def test_a_run_does_not_check_the_search_section_against_the_experiment() -> None:
    """ASHA has no round to stop at within three rounds, which matters only to a search."""
    assert load_embedded("digits", ["federation.rounds=3"]).experiment.federation.rounds == 3
    with pytest.raises(fr.ConfigError, match="should be less than federation"):
        load_embedded("digits", ["federation.rounds=3"], to_search=True)


def test_a_searched_preset_gets_its_own_defaults() -> None:
    given = build_document(
        {"space": {"algorithm.name": {"choice": ["fedprox", "fedadam"]}}}, algorithm={"name": "fedprox"}
    )
    assert given.build_variant({"algorithm.name": "fedadam"}).algorithm.server_lr == 0.1
    assert given.build_variant({}).algorithm.mu == 0.001


def test_a_grid_lists_every_point_in_order() -> None:
    search = build_document(
        {"space": {A: {"grid": [1, 2]}, "seed": {"grid": [0, 1, 2]}}, "algorithm": "grid", "trials": 2}
    )
    assert search.search is not None
    points = [(point[A], point["seed"]) for point in list_grid_points(search.search)]
    assert points == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert count_trials(search.search) == 12


def test_settings_can_change_during_a_run() -> None:
    experiment = build_document(
        {"space": ONE}, "regularizer.clip_bound=8", "regularizer.clip_bound_anneal=0.5"
    ).experiment
    changed = fr.Experiment.model_validate(
        {**experiment.model_dump(), "changes": {2: {A: 4.0}, 4: {"regularizer.clip_bound_anneal": 1.0}}}
    )
    # 8·½^t before round 2, 4·½^t before round 4, then 4
    assert [changed.compute_scalars(t).clip_bound for t in range(6)] == [8.0, 4.0, 1.0, 0.5, 4.0, 4.0]
    assert experiment.compute_scalars(5).clip_bound == 0.25


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({2: {"algorithm.name": 1.0}}, "cannot change within a run"),
        ({2: {A: -1.0}}, "Input should be greater than 0"),
        ({6: {A: 1.0}}, "federation.rounds is 6"),
    ],
)
def test_invalid_changes_are_refused(changes: Any, text: str) -> None:
    assert text in "\n".join(find_problems({"space": ONE}, changes=changes))


def test_trials_are_placed_where_their_bundles_fit() -> None:
    cpu, gpu = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 0.5}
    assert count_fitting_trials([cpu], [{"CPU": 2.0}]) == 2
    assert count_fitting_trials([{}, cpu, cpu], [{"CPU": 3.0}, {"CPU": 1.0}]) == 2
    assert count_fitting_trials([{}, gpu, gpu], [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}]) == 1
    assert (
        count_fitting_trials([{"CPU": 3.0}], [{"CPU": 2.0}, {"CPU": 2.0}]) == 0
    )  # four CPUs in total, but no node with three
