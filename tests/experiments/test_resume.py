"""A resumed run has the same bytes, history and MLflow run as one that was never interrupted."""

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray import config
from fednar_ray.algorithms.presets import PRESETS
from fednar_ray.algorithms.regularizers import REGULARIZERS
from fednar_ray.core.errors import CheckpointError, RoundAborted
from fednar_ray.core.reports import RoundRecord
from fednar_ray.core.timing import DURATIONS
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.resume import Resumption, resume_from
from fednar_ray.experiments.train import train
from fednar_ray.federated.attacks import draw_attack_factors
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.locks import lock_run_directory
from fednar_ray.tracking.mlflow_names import START_UP, name_in_mlflow
from fednar_ray.tracking.run_lookup import load_run
from tests.conftest import build_small_federation
from tests.support.commands import hash_parameters, run_in_process
from tests.support.processes import finish, start_fednar
from tests.support.servers import PATIENCE_SECONDS, wait_for
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

ROUNDS = 6
SIZES = (7, 30, 12, 2, 21)
STATEFUL = ("scaffold", "scaffold+exp", "feddyn")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return create_store(tmp_path_factory.mktemp("store") / "m.db")


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def build_settings(uri: str, **changes: Any) -> fr.Experiment:
    base: dict[str, Any] = {
        "name": "long",
        "federation": {"rounds": ROUNDS, "clients_per_round": 3, "local_steps": 2, "batch_size": 5},
        "algorithm": {"name": "fedavg", "local_lr": 0.3, "local_lr_anneal": 0.9},
        "regularizer": {"clip_bound": 0.8, "weight_decay": 0.1, "weight_decay_anneal": 0.8},
        "execution": {"placement": "serial"},
        "checkpoint": {"every": 2},
        "tracking": {"uri": uri, "experiment": Path.cwd().name},  # each test has its own experiment in a common store
    }
    merged = {
        key: {**base.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()
    }
    return fr.Experiment.model_validate({**base, **merged})


def build_network(*layers: torch.nn.Module) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(2, 5), *layers, torch.nn.Tanh(), torch.nn.Linear(5, 3))


def build_arguments(**changes: Any) -> dict[str, Any]:
    """Returns new arguments that belong to the settings, as another process would build them."""
    return {"federation": build_small_federation(SIZES), "model": build_network(), **changes}


def leave_run(
    experiment: fr.Experiment,
    rounds: int,
    *,
    resumption: Resumption | None = None,
    checked: bool = True,
    **inputs: Any,
) -> Path:
    """Stops a run after some rounds and returns its directory, with every checkpoint that was due by then."""
    inputs, start = inputs or build_arguments(), 0
    if resumption is not None:
        experiment, start = resumption.experiment, resumption.checkpoint.next_round
    prepared, every = prepare(experiment, inputs["federation"], inputs["model"]), experiment.checkpoint.every
    with contextlib.closing(train(prepared, fr.RaySession(), resumption=resumption)) as training:
        for done in range(start + 1, rounds + 1):
            next(training)
            if checked and every is not None and done % every == 0:
                wait_for((find_newest() / "checkpoints" / f"round-{done:08d}.json").exists, pause=0.002)
    assert not checked or list_checkpoints(find_newest())[-1].name == f"round-{rounds:08d}.json"
    return find_newest()


def find_newest() -> Path:
    """Returns the directory of the run that was started or resumed last."""
    return max(Path("runs").absolute().iterdir(), key=lambda path: (path / "experiment.yaml").stat().st_ctime_ns)


def leave_killed_run(experiment: fr.Experiment, rounds: int, **inputs: Any) -> Path:
    """Returns the directory of a run that did not save its last rounds: journal and MLflow are ahead of it."""
    directory = leave_run(experiment, rounds, **inputs)
    list_checkpoints(directory)[-1].unlink()
    return directory


def list_checkpoints(directory: Path) -> list[Path]:
    """Returns the manifests, oldest first."""
    return sorted((directory / "checkpoints").glob("round-*.json"))


def drop_durations(metrics: Any) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in DURATIONS}


def assert_equals_uninterrupted(result: fr.Result, experiment: fr.Experiment, **inputs: Any) -> None:
    """Compares with an uninterrupted run that neither writes nor reads files."""
    reports = list(fr.iter_rounds(experiment, **(inputs or build_arguments())))
    assert result.parameters.tobytes() == reports[-1].parameters.tobytes()
    assert torch.nn.utils.parameters_to_vector(result.model.parameters()).detach().numpy().tobytes() == (
        reports[-1].eval_params.tobytes()
    )
    assert_same_history(result.history, reports)


def assert_same_history(history: Sequence[RoundRecord], reports: Sequence[RoundRecord]) -> None:
    assert [record.round_index for record in history] == list(range(len(reports)))
    for record, report in zip(history, reports, strict=True):
        assert record.client_ids == report.client_ids
        assert record.exclusions == report.exclusions
        np.testing.assert_equal(drop_durations(record.metrics), drop_durations(report.metrics))


def assert_recorded_once(directory: Path) -> None:
    """Asserts that MLflow has every metric of every round once in one finished run, and so has the journal."""
    place = json.loads((directory / "run.json").read_text())
    client, run_id, history = MlflowClient(place["tracking_uri"]), place["run_id"], load_records(directory)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    same_name = client.search_runs([run.info.experiment_id], f"attributes.run_name = '{run.info.run_name}'")
    assert len(same_name) == len([path for path in Path("runs").iterdir() if path.name.startswith("long-")])
    assert [record.round_index for record in history] == list(range(len(history)))
    names = {name for record in history for name in record.metrics}
    assert set(run.data.metrics) - {name_in_mlflow(START_UP)} == {*map(name_in_mlflow, names)}
    for name in names:
        points = sorted(client.get_metric_history(run_id, name_in_mlflow(name)), key=lambda point: point.step)
        wanted = [(r.round_index, r.metrics[name]) for r in history if name in r.metrics]
        assert [(point.step, point.value) for point in points] == wanted, name


# --- The same run, for every kind of state


@pytest.mark.parametrize(("preset", "regularizer"), [*zip(PRESETS, [*REGULARIZERS] * 4, strict=False)])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(preset: str, regularizer: str, uri: str) -> None:
    """Stateful presets keep the rows of the first part on disk, and those of the second part in memory."""
    started = build_settings(uri, algorithm={"name": preset}, regularizer={"name": regularizer})
    on_disk = {"state_memory_bytes": 0} if preset in STATEFUL else {}
    leave_killed_run(started.model_copy(update={"execution": started.execution.model_copy(update=on_disk)}), 5)
    assert_resumes_at(4, started)


def assert_resumes_at(start: int, experiment: fr.Experiment, *layers: torch.nn.Module) -> None:
    """Resumes the newest run, trains it to its last round, and compares with an uninterrupted run."""
    resumption = resume_from(None, experiment)
    assert resumption is not None
    assert resumption.checkpoint.next_round == start
    inputs = build_arguments(model=build_network(*layers))
    directory = leave_run(experiment, experiment.federation.rounds, resumption=resumption, **inputs)
    last = load_run(directory).open_checkpoints().load()
    assert last is not None
    reports = list(fr.iter_rounds(experiment, **build_arguments(model=build_network(*layers))))
    assert last.arrays["parameters"].tobytes() == reports[-1].parameters.tobytes()
    assert_same_history(load_records(directory), reports)


VARIANTS: dict[str, tuple[dict[str, Any], tuple[torch.nn.Module, ...]]] = {
    "dropout": ({"execution": {"vectorize": 2}}, (torch.nn.Dropout(0.4),)),
    "clients that are available now and then": (
        {"availability": {"on_off": {"on_rounds": 2, "off_rounds": 2}, "dropout": 0.3}, "federation": {"rounds": 12}},
        (),
    ),
    "slow clients": (
        {
            "availability": {"speed": {"spread": 1, "jitter": 0.5}, "deadline_seconds": 3, "over_sampling": 1.6},
            "algorithm": {"name": "scaffold"},
        },
        (),
    ),
    "a schedule": ({"federation": {"participation": [[0, 1], [2], [1, 3, 4], [0], [4, 2], [3, 1]]}}, ()),
    "clients that send NaN, and a median": (
        {"attacks": {"nan": 0.2}, "screening": {"max_deviation": 5}, "aggregation": {"name": "median"}},
        (),
    ),
    "updates that only their sum shows": (
        {"secure_aggregation": {}, "federation": {"clients_per_round": 4}, "algorithm": {"name": "fedexp"}},
        (),
    ),
    "epochs, and evaluations now and then": (
        {"federation": {"local_steps": None, "local_epochs": 2}, "evaluation": {"every": 4, "federated": True}},
        (),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_state_and_randomness_is_resumed(variant: str, uri: str) -> None:
    changes, layers = VARIANTS[variant]
    experiment = build_settings(uri, **changes)
    rounds = experiment.federation.rounds
    leave_killed_run(experiment, rounds - 1, **build_arguments(model=build_network(*layers)))
    assert_resumes_at(rounds - 2, experiment, *layers)


def test_the_buffers_of_batch_norm_are_resumed_and_returned(uri: str) -> None:
    experiment, layer = build_settings(uri), torch.nn.BatchNorm1d(5)
    leave_killed_run(experiment, ROUNDS - 1, **build_arguments(model=build_network(layer)))
    result = fr.run(experiment, **build_arguments(model=build_network(layer)), resume_newest=True)
    assert result.resumed_from_round == ROUNDS - 2
    assert_equals_uninterrupted(result, experiment, **build_arguments(model=build_network(layer)))
    *_, last = fr.iter_rounds(experiment, **build_arguments(model=build_network(layer)))
    buffers = [buffer.numpy().reshape(-1) for buffer in result.model.buffers()]
    np.testing.assert_array_equal(np.concatenate(buffers), last.buffers.astype(np.float32))


def test_the_first_checkpoint_after_a_resumption_writes_only_the_rows_that_changed(uri: str) -> None:
    experiment = build_settings(uri, algorithm={"name": "scaffold"}, checkpoint={"every": 1, "keep": 9})
    directory = leave_run(experiment, 4)
    before = list_writes(directory / "checkpoints")
    resumption = resume_from(None, experiment)
    assert resumption is not None
    leave_run(experiment, 5, resumption=resumption)
    after = list_writes(directory / "checkpoints")
    assert before.items() <= after.items()
    rows = [name.removeprefix("rows/").split("-")[0] for name in after.keys() - before.keys() if "rows/" in name]
    assert sorted(map(int, rows)) == list(load_records(directory)[4].client_ids)
    assert len(rows) < len(resumption.checkpoint.rows)


def list_writes(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the inode and modification time of every file; both change if a file is rewritten."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_run_that_is_stopped_repeatedly_equals_an_uninterrupted_one(uri: str) -> None:
    """The same experiment is started each time, as by a supervisor that repeats one command."""
    experiment = build_settings(uri, algorithm={"name": "scaffold"}, checkpoint={"every": 1})
    directory = leave_killed_run(experiment, 2)
    for done in (1, 2, 3):
        resumption = resume_from(None, experiment)
        assert resumption is not None
        assert resumption.checkpoint.next_round == done
        assert leave_run(experiment, done + 1, resumption=resumption) == directory
    result = fr.run(experiment, **build_arguments(), resume_newest=True)
    assert result.resumed_from_round == 4
    assert_equals_uninterrupted(result, experiment)
    assert_recorded_once(result.directory)


def test_a_failed_run_resumes_once_the_cause_is_fixed(uri: str) -> None:
    """Client 1 sends NaN. ``min_clients`` may change on resumption, since it does not change what is trained."""
    schedule = [[0, 2], [2, 4], [0, 3], [0, 1], [2, 3], [3, 4]]
    strict = build_settings(
        uri, federation={"participation": schedule}, attacks={"nan": 0.2}, execution={"min_clients": 2}, seed=5
    )
    assert draw_attack_factors(strict.attacks, len(SIZES), strict.seed).keys() == {1}
    with pytest.raises(RoundAborted, match="round 3 aborted: 1 of 2 client updates usable, at least 2 required"):
        fr.run(strict, **build_arguments())
    (directory,) = Path("runs").iterdir()
    client = MlflowClient(uri)
    run_id = json.loads((directory / "run.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"
    lenient = build_settings(uri, federation={"participation": schedule}, attacks={"nan": 0.2}, seed=5)
    result = fr.run(lenient, **build_arguments(), resume_newest=True)
    assert (result.resumed_from_round, result.run_id) == (3, run_id)
    assert_equals_uninterrupted(result, lenient)
    assert_recorded_once(result.directory)


def test_a_run_aborted_for_too_few_masked_updates_resumes_with_a_lower_threshold(uri: str) -> None:
    """Client 1 withholds an update that is not finite, in round 3. The new process has new keys and masks."""
    schedule = [[0, 2, 3, 4], [2, 4, 0], [0, 3, 4], [0, 1, 2, 3], [2, 3, 4], [3, 4, 0]]
    common = {"federation": {"participation": schedule}, "attacks": {"nan": 0.2}, "seed": 5}
    strict = build_settings(uri, **common, secure_aggregation={"threshold": 1.0})
    text = "masked updates of 3 of 4 clients arrived, secure_aggregation.threshold requires 4; client 1 excluded: its"
    with pytest.raises(RoundAborted, match=f"round 3 aborted: {text}"):
        fr.run(strict, **build_arguments())
    lenient = build_settings(uri, **common, secure_aggregation={"threshold": 0.67})
    result = fr.run(lenient, **build_arguments(), resume_newest=True)
    assert result.resumed_from_round == 3
    assert_equals_uninterrupted(result, lenient)
    assert_recorded_once(result.directory)


def test_placement_and_checkpoint_settings_may_change(uri: str, session: fr.RaySession) -> None:
    """The run moves from this process to two actors, and its new checkpoints are more frequent and in another place."""
    experiment = build_settings(uri, algorithm={"name": "scaffold"}, execution={"vectorize": 2})
    directory = leave_killed_run(experiment, 3)
    shares = {"placement": "pooled", "actors": 2, "cpus_per_actor": 0.1, "gpus_per_actor": 0, "retries": 0}
    kept = {"storage": str(directory.parent.parent / "kept"), "every": 1, "keep": 3}
    elsewhere = build_settings(
        uri, algorithm={"name": "scaffold"}, execution={"vectorize": 2, **shares}, checkpoint=kept
    )
    result = fr.run(elsewhere, **build_arguments(), session=session, resume_newest=True)
    assert (result.resumed_from_round, result.placement, len(result.places)) == (2, "pooled", 2)
    assert_equals_uninterrupted(result, experiment)
    assert_recorded_once(result.directory)
    found = sorted(path.name for path in (Path("kept") / directory.name).glob("round-*.json"))
    assert found[-1] == "round-00000006.json"
    assert set(found) <= {
        f"round-{done:08d}.json" for done in (3, 4, 5, 6)
    }  # some are replaced by the next before they are written
    assert len(found) <= 3
    assert list_checkpoints(directory)[-1].name == "round-00000002.json"


# --- More rounds, and fewer


def test_a_resumed_run_may_have_more_rounds_than_before(uri: str) -> None:
    short, long = build_settings(uri, federation={"rounds": 4}), build_settings(uri, federation={"rounds": 7})
    first = fr.run(short, **build_arguments())
    result = fr.run(long, **build_arguments(), resume_newest=True)
    assert (result.resumed_from_round, result.run_id, result.directory) == (4, first.run_id, first.directory)
    assert_equals_uninterrupted(result, long)
    assert_recorded_once(result.directory)


def test_a_stopped_run_finishes_if_its_rounds_are_reduced_to_those_trained(uri: str) -> None:
    leave_run(build_settings(uri), 3)
    exactly = build_settings(uri, federation={"rounds": 3})
    result = fr.run(exactly, **build_arguments(), resume_newest=True)
    assert result.resumed_from_round == 3
    assert_equals_uninterrupted(result, exactly)
    assert_recorded_once(result.directory)


def test_a_run_that_an_earlier_version_started_gets_the_names_of_its_clients(uri: str) -> None:
    given = build_small_federation(SIZES)
    parts = {f"ward {i}": given.shards.only(i).examples for i in range(len(SIZES))}
    named = fr.Federation({name: (part.x, part.y) for name, part in parts.items()}, (given.test.x, given.test.y))
    inputs = {"federation": named, "model": build_network()}
    directory = leave_run(build_settings(uri), 2, **inputs)
    before = (directory / "clients.json").read_bytes()
    (directory / "clients.json").unlink()
    result = fr.run(build_settings(uri), **inputs, resume=directory)
    assert (directory / "clients.json").read_bytes() == before
    assert "clients.json" in {each.path for each in MlflowClient(uri).list_artifacts(result.run_id)}
    lines = (directory / "outbox.jsonl").read_text().splitlines()
    assert sum("clients.json" in line for line in lines) == 2  # once by each process


def test_fewer_rounds_than_trained_are_refused(uri: str) -> None:
    directory = leave_run(build_settings(uri), 3)
    fewer = build_settings(uri, federation={"rounds": 2})
    assert find_refusal(fewer) == [
        f"{directory.name} was started with another experiment, and cannot be resumed with this one:",
        "federation.rounds: 2 is less than the rounds done (3)",
    ]
    assert find_refusal(fewer, may_change=["federation"])[1:] == [
        "federation.rounds: 2 is less than the rounds done (3)"
    ]


def find_refusal(experiment: fr.Experiment, *, may_change: Sequence[str] = (), resume: str | None = None) -> list[str]:
    """Returns the lines of the error and asserts that the run is unchanged. By default the newest run is resumed."""
    files = read_files(Path.cwd())
    with pytest.raises(fr.ConfigError) as caught:
        fr.run(experiment, **build_arguments(), resume=resume, resume_newest=resume is None, may_change=may_change)
    assert read_files(Path.cwd()) == files
    return list(caught.value.problems)


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Another experiment


@pytest.fixture
def started(uri: str) -> Path:
    """Returns the directory of a run on digits that was stopped after round 2."""
    experiment = build_digits(uri)
    return leave_run(experiment, 2, federation=None, model=None)


def build_digits(uri: str, **changes: Any) -> fr.Experiment:
    data = {"partition": {"clients": 4}}
    return build_settings(uri, **{"data": data, "model": {"hidden": 4}, "federation": {"rounds": 3}, **changes})


OTHERS = {
    "another regularizer": ({"regularizer": {"name": "coupled"}}, ["regularizer.name: 'coupled', and was 'fednar'"]),
    "another bound": ({"regularizer": {"clip_bound": 9}}, ["regularizer.clip_bound: 9.0, and was 0.8"]),
    "another seed": ({"seed": 1}, ["seed: 1, and was 0"]),
    "other data": (
        {"data": {"partition": {"clients": 5}, "validation": 0.1}},
        ["data.validation: 0.1, and was 0.0", "data.partition.clients: 5, and was 4"],
    ),
    "another preset": (
        {"algorithm": {"name": "fedexp"}},
        [
            "algorithm.name: 'fedexp', and was 'fedavg'",
            "algorithm.server_lr: None, and was 1.0",
            "algorithm.epsilon: 0.001, and was None",
            "algorithm.epsilon_anneal: 1.0, and was None",
        ],
    ),
    "another precision": (
        {"execution": {"precision": "bfloat16"}},
        ["execution.precision: 'bfloat16', and was 'float32'"],
    ),
    "another width": ({"execution": {"vectorize": 3}}, ["execution.vectorize: 3, and was 1"]),
    "another name": ({"name": "other"}, ["name: 'other', and was 'long'"]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_changed_experiment_is_refused_with_keys_values_and_option(case: str, started: Path, uri: str) -> None:
    changes, lines = OTHERS[case]
    wanted = [f"{line}; --may-change {line.partition(':')[0]} allows it" for line in lines]
    first, *problems = find_refusal(build_digits(uri, **changes), resume=started.name)
    assert first == f"{started.name} was started with another experiment, and cannot be resumed with this one:"
    assert sorted(problems) == sorted(wanted)


def test_only_named_keys_may_change(started: Path, uri: str) -> None:
    both = build_digits(uri, regularizer={"clip_bound": 9}, seed=1)
    assert find_refusal(both, may_change=["seed", "regularizer.clip"])[1:] == [
        "regularizer.clip_bound: 9.0, and was 0.8; --may-change regularizer.clip_bound allows it"
    ]
    elsewhere = build_digits(uri, tracking={"experiment": "elsewhere"})
    assert find_refusal(elsewhere, may_change=["tracking"])[1:] == [
        f"tracking.experiment: 'elsewhere', and was '{Path.cwd().name}'"  # the MLflow run cannot move
    ]


def test_permitted_changes_take_effect_on_resumption(uri: str) -> None:
    """All clients train on one batch without random draws, so a new run from the same parameters gives the result."""
    whole = {"rounds": 4, "clients_per_round": None, "local_steps": 1, "batch_size": 100}
    still: dict[str, Any] = {"algorithm": {"local_lr_anneal": 1.0}, "federation": whole}
    decays = {"weight_decay": 0.1, "weight_decay_anneal": 1.0}
    started = build_settings(uri, regularizer={"name": "fednar", **decays}, **still)
    changed = build_settings(uri, regularizer={"name": "decoupled", **decays}, **still)
    directory = leave_killed_run(
        started, 3
    )  # resumed from round 2: round 2 was recorded, and comes out differently now
    result = fr.run(changed, **build_arguments(), resume_newest=True, may_change=["regularizer"])
    assert result.resumed_from_round == 2
    first = list(fr.iter_rounds(started, **build_arguments()))[:2]
    model = build_network()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(first[-1].parameters.copy()), model.parameters())
    then = list(fr.iter_rounds(changed, **build_arguments(model=model)))[:2]
    np.testing.assert_allclose(result.parameters, then[-1].parameters, rtol=1e-5, atol=1e-7)
    losses = [report.metrics["test_loss"] for report in (*first, *then)]
    assert [record.metrics["test_loss"] for record in result.history] == pytest.approx(losses, rel=1e-5)
    journal = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["metrics"]["test_loss"] for line in journal] == pytest.approx(losses, rel=1e-5)


def test_other_data_are_refused(uri: str) -> None:
    directory = leave_run(build_settings(uri), 3)
    other = build_small_federation(SIZES, seed=1)
    with pytest.raises(fr.ConfigError, match=f"^{directory.name}: the data changed since the run was started$"):
        fr.run(build_settings(uri), **build_arguments(federation=other), resume_newest=True)
    with pytest.raises(fr.ConfigError, match="its checkpoint has 33 parameters, and this model has 63"):
        fr.run(build_settings(uri), **build_arguments(model=build_network(torch.nn.Linear(5, 5))), resume_newest=True)
    result = fr.run(build_settings(uri), **build_arguments(), resume_newest=True)  # none of this has changed the run
    assert_equals_uninterrupted(result, build_settings(uri))
    assert_recorded_once(result.directory)


# --- Which run


def test_without_a_name_the_newest_run_of_the_experiment_is_resumed(uri: str) -> None:
    older = leave_run(build_settings(uri), 2)
    newer = leave_run(build_settings(uri), 3)
    leave_run(build_settings(uri, seed=1), 4)  # another experiment of that name
    leave_run(build_settings(uri, name="long-er"), 1)  # and one whose name starts with the same letters
    result = fr.run(build_settings(uri), **build_arguments(), resume_newest=True)
    assert (result.directory, result.resumed_from_round) == (newer, 3)
    assert_equals_uninterrupted(result, build_settings(uri))
    assert list_checkpoints(older)[-1].name == "round-00000002.json"


def test_if_all_runs_of_the_name_have_other_settings_the_newest_is_named(uri: str) -> None:
    leave_run(build_settings(uri, seed=1), 1)
    newer = leave_run(build_settings(uri, seed=2), 1)
    assert find_refusal(build_settings(uri)) == [
        f"{newer.name} was started with another experiment, and cannot be resumed with this one:",
        "seed: 0, and was 2; --may-change seed allows it",
    ]


def test_without_a_run_to_resume_a_new_one_starts(uri: str) -> None:
    leave_run(build_settings(uri, name="long-er"), 1)  # its name starts with this one
    leave_run(build_settings(uri, name="lo"), 1)
    leave_run(build_settings(uri, checkpoint={"every": None}), 0, checked=False)  # it has this name, but no checkpoint
    result = fr.run(build_settings(uri, federation={"rounds": 1}), **build_arguments(), resume_newest=True)
    assert result.resumed_from_round is None
    assert len(result.history) == 1


def test_a_run_is_found_by_name_id_directory_and_checkpoint_location(uri: str, tmp_path: Path) -> None:
    directory = leave_run(build_settings(uri), 1)
    leave_run(build_settings(uri), 1)
    run_id = json.loads((directory / "run.json").read_text())["run_id"]
    names = (directory.name, run_id[:8], run_id, directory, f"runs/{directory.name}", directory / "checkpoints")
    for name in names:
        resumption = resume_from(str(name), build_settings(uri))
        assert resumption is not None
        assert (resumption.ref.directory, resumption.run_id) == (directory, run_id)
    result = fr.run(build_settings(uri), **build_arguments(), resume=directory / "checkpoints")
    assert (result.directory, result.run_id, result.resumed_from_round) == (directory, run_id, 1)
    assert_recorded_once(result.directory)
    assert_equals_uninterrupted(result, build_settings(uri))


def test_a_named_run_is_resumed_with_its_own_experiment(uri: str) -> None:
    directory = leave_run(build_settings(uri), 3)
    result = fr.run(**build_arguments(), resume=directory.name)
    assert result.resumed_from_round == 3
    assert_equals_uninterrupted(result, build_settings(uri))
    with pytest.raises(fr.ConfigError, match="experiment: missing"):
        fr.run(**build_arguments(), resume_newest=True)
    with pytest.raises(fr.ConfigError, match="set only one of resume= and resume_newest="):
        fr.run(build_settings(uri), **build_arguments(), resume=directory.name, resume_newest=True)


def test_an_unknown_name_lists_the_existing_runs(uri: str) -> None:
    with pytest.raises(fr.BadInput, match=r"nonsense: no such run.*; runs here: none"):
        fr.run(build_settings(uri), **build_arguments(), resume="nonsense")
    directory = leave_run(build_settings(uri, checkpoint={"every": None}), 1, checked=False)
    with pytest.raises(fr.BadInput, match=f"nonsense: no such run, .*; runs here: {directory.name}"):
        fr.run(build_settings(uri), **build_arguments(), resume="nonsense")
    with pytest.raises(fr.BadInput, match=f"{directory.name} has no checkpoint in {directory}/checkpoints; start a"):
        fr.run(build_settings(uri), **build_arguments(), resume=directory.name)


def test_a_finished_run_returns_its_result_and_does_not_change_mlflow(uri: str) -> None:
    experiment = build_settings(uri, algorithm={"name": "fedexp"})
    first = fr.run(experiment, **build_arguments())
    before = dump(uri)
    again = fr.run(experiment, **build_arguments(model=Untrainable(build_network())), resume_newest=True)
    assert dump(uri) == before
    assert (again.run_id, again.directory, again.tracking_uri) == (first.run_id, first.directory, first.tracking_uri)
    assert (again.resumed_from_round, again.places) == (ROUNDS, ())
    assert again.history == first.history
    assert again.parameters_sha256 == first.parameters_sha256
    for name, weights in first.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[f"inner.{name}"], weights, rtol=0, atol=0)


def dump(uri: str) -> list[str]:
    """Returns the contents of MLflow's database."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        return list(database.iterdump())


class Untrainable(torch.nn.Module):
    """A model of which only the shapes are needed; computing a gradient is an error."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        assert not out.requires_grad, "this model is trained"
        return out


def test_a_run_without_its_directory_is_resumed_from_its_storage(uri: str, tmp_path: Path) -> None:
    """The run is resumed as on another machine."""
    experiment = build_settings(uri, checkpoint={"storage": str(tmp_path / "kept")}, algorithm={"name": "feddyn"})
    directory = leave_run(experiment, 3, checked=False)
    run_id = json.loads((directory / "run.json").read_text())["run_id"]
    shutil.rmtree("runs")
    result = fr.run(experiment, **build_arguments(), resume_newest=True)
    assert (result.resumed_from_round, result.run_id, result.directory) == (3, run_id, directory)
    assert_equals_uninterrupted(result, experiment)
    assert_recorded_once(result.directory)
    shutil.rmtree("runs")
    more = build_settings(uri, checkpoint={"storage": str(tmp_path / "kept")}, algorithm={"name": "feddyn"})
    again = fr.run(more, **build_arguments(), resume=tmp_path / "kept" / directory.name)
    assert (again.resumed_from_round, again.run_id, again.directory) == (ROUNDS, run_id, directory)
    assert again.parameters_sha256 == result.parameters_sha256
    assert_recorded_once(again.directory)


def test_a_run_that_another_process_writes_is_not_resumed(uri: str) -> None:
    directory = leave_run(build_settings(uri), 2)
    being_written = "is being written by a process that is running"
    with lock_run_directory(directory), pytest.raises(fr.BadInput, match=being_written):
        fr.run(build_settings(uri), **build_arguments(), resume_newest=True)


# --- Damage


def flip_bit(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def find_arrays(manifest: Path) -> Path:
    return manifest.parent / json.loads(manifest.read_text())["arrays"]["name"]


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = leave_run(build_settings(uri, algorithm={"name": "scaffold"}), 5)
    older, newest = list_checkpoints(directory)
    arrays = find_arrays(newest)
    flip_bit(arrays)
    experiment = build_settings(uri, algorithm={"name": "scaffold"})
    result = fr.run(experiment, **build_arguments(), resume_newest=True)
    (warning,) = [message for message in caplog.messages if "cannot be used" in message]
    assert warning == (
        f"checkpoint {newest.name} in {directory}/checkpoints cannot be used: "
        f"{arrays.name} does not hold what was written: its SHA-256 differs"
    )
    assert older.name == "round-00000004.json"
    assert result.resumed_from_round == 4
    assert_equals_uninterrupted(result, experiment)
    assert_recorded_once(result.directory)


def test_if_every_checkpoint_is_damaged_the_run_is_not_resumed(uri: str) -> None:
    directory = leave_run(build_settings(uri), 5)
    for manifest in list_checkpoints(directory):
        flip_bit(find_arrays(manifest))
    files, before = read_files(directory), dump(uri)
    wanted: list[dict[str, Any]] = [{"resume_newest": True}, {"resume": directory.name}]
    for each in wanted:
        with pytest.raises(CheckpointError, match=f"every checkpoint in {directory}/checkpoints is damaged: "):
            fr.run(build_settings(uri), **build_arguments(), **each)
    assert read_files(directory) == files
    assert dump(uri) == before


# --- As commands

TYPED_ROUNDS = 33


def build_command(uri: str, every: int) -> list[str]:
    """Returns the command of a run with slow rounds, as a supervisor repeats it."""
    work = {"rounds": TYPED_ROUNDS, "local_steps": 40, "batch_size": 32}
    experiment = build_digits(uri, algorithm={"name": "scaffold"}, federation=work, checkpoint={"every": every})
    Path("long.yaml").write_text(config.dump(experiment), encoding="utf-8")
    return ["run", "long.yaml", "--resume", "--json"]


def signal_command(command: list[str], number: signal.Signals, done: Callable[[], int], rounds: int) -> tuple[int, str]:
    """Sends a command a signal after some rounds, and returns its exit code and output."""
    with start_fednar(*command) as process:
        try:
            wait_for(lambda: done() >= rounds or process.poll() is not None, pause=0.002)
            process.send_signal(number)
            output, message = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    if number == signal.SIGKILL:
        assert output == ""
    else:
        assert json.loads(output)["exit_code"] == process.returncode
    assert "Traceback" not in message
    return process.returncode, message


def run_to_end(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command that must end without an error."""
    done = finish(start_fednar(*command))
    assert done.returncode == 0, done.stderr
    return done


def count_recorded_rounds() -> int:
    return max((len(load_records(path)) for path in Path("runs").glob("long-*")), default=0)


def find_newest_checkpoint() -> int:
    return max((int(path.stem.partition("-")[2]) for path in Path("runs").rglob("round-*.json")), default=0)


def hash_uninterrupted() -> str:
    """Returns the SHA-256 of the final parameters of an uninterrupted run."""
    *_, last = fr.iter_rounds(fr.load("long.yaml"))
    return hash_parameters(last)


@pytest.mark.usefixtures("processes")
def test_a_command_that_is_killed_terminated_and_interrupted_gives_the_same_bytes(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = build_command(uri, every=3)
    code, message = signal_command(command, signal.SIGKILL, find_newest_checkpoint, 3)
    assert code == -signal.SIGKILL, message
    assert "no run of 'long' to resume; starting a new one" in message
    (directory,) = Path("runs").absolute().iterdir()
    run_id = json.loads((directory / "run.json").read_text())["run_id"]
    for number, wanted, word in ((signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")):
        start, done = find_newest_checkpoint(), count_recorded_rounds()
        assert 3 <= start <= done < TYPED_ROUNDS
        code, message = signal_command(command, number, count_recorded_rounds, done + 4)
        assert code == wanted, message
        assert f"INFO resuming {directory.name} at round {start}" in message
        assert message.splitlines()[-1] == f"{word}; resume it with: fednar run --resume {directory.name}"
        assert done < find_newest_checkpoint() == count_recorded_rounds() < TYPED_ROUNDS
        assert MlflowClient(uri).get_run(run_id).info.status == "KILLED"
    start = find_newest_checkpoint()
    assert run_in_process(monkeypatch, "runs") == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith(directory.name)]
    assert f"{start}/{TYPED_ROUNDS}" in row
    assert "interrupted" in row
    assert any(line.rstrip().endswith(f" {start}") for line in lines)  # "resumes from round", over several lines
    assert f"resume it with: fednar run --resume {directory.name}" in lines
    summary = json.loads(run_to_end(command).stdout)
    assert (summary["directory"], summary["run_id"]) == (str(directory), run_id)
    assert (summary["resumed_from_round"], summary["rounds"]) == (start, TYPED_ROUNDS)
    assert summary["parameters_sha256"] == hash_uninterrupted()
    assert_recorded_once(directory)
    assert run_in_process(monkeypatch, *command) == 0
    assert json.loads(capsys.readouterr().out) == {**summary, "resumed_from_round": TYPED_ROUNDS}
