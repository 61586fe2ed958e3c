"""A resumed run has the same bytes, history and MLflow run as one that was never interrupted."""

import contextlib
import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
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
from fednar_ray.experiments.run import train
from fednar_ray.federated.attacks import draw_attack_factors
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.locks import lock_run_directory
from fednar_ray.tracking.run_lookup import load_run
from tests.conftest import build_small_federation
from tests.support.servers import PATIENCE_SECONDS, wait_for
from tests.support.stores import create_store

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

ROUNDS = 6
SIZES = (7, 30, 12, 2, 21)
STATEFUL = ("scaffold", "scaffold+exp", "feddyn")
FEDNAR = str(Path(sys.executable).parent / "fednar")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return create_store(tmp_path_factory.mktemp("store") / "m.db")


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(uri: str, **changes: Any) -> fr.Experiment:
    base: dict[str, Any] = {
        "name": "long",
        "federation": {"rounds": ROUNDS, "clients_per_round": 3, "local_steps": 2, "batch_size": 5},
        "algorithm": {"name": "fedavg", "local_lr": 0.3, "local_lr_anneal": 0.9},
        "regularizer": {"clip_bound": 0.8, "weight_decay": 0.1, "weight_decay_anneal": 0.8},
        "execution": {"placement": "serial"},
        "checkpoint": {"every": 2},
        "tracking": {"uri": uri, "experiment": Path.cwd().name},  # a test's own, in a store for all
    }
    merged = {
        key: {**base.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()
    }
    return fr.Experiment.model_validate({**base, **merged})


def network(*layers: torch.nn.Module) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(2, 5), *layers, torch.nn.Tanh(), torch.nn.Linear(5, 3))


def given(**changes: Any) -> dict[str, Any]:
    """What goes with the settings, made again, as another process would."""
    return {"federation": build_small_federation(SIZES), "model": network(), **changes}


def left(
    experiment: fr.Experiment,
    rounds: int,
    *,
    resumption: Resumption | None = None,
    checked: bool = True,
    **inputs: Any,
) -> Path:
    """The directory of a run that was left after so many rounds, with every checkpoint that was due by then."""
    inputs, start = inputs or given(), 0
    if resumption is not None:
        experiment, start = resumption.experiment, resumption.checkpoint.next_round
    prepared, every = prepare(experiment, inputs["federation"], inputs["model"]), experiment.checkpoint.every
    with contextlib.closing(train(prepared, fr.RaySession(), resumption=resumption)) as training:
        for done in range(start + 1, rounds + 1):
            next(training)
            if checked and every is not None and done % every == 0:
                wait_for((newest() / "checkpoints" / f"round-{done:08d}.json").exists, pause=0.002)
    assert not checked or checkpoints(newest())[-1].name == f"round-{rounds:08d}.json"
    return newest()


def newest() -> Path:
    """The directory of the run that was started or resumed last."""
    return max(Path("runs").absolute().iterdir(), key=lambda path: (path / "experiment.yaml").stat().st_ctime_ns)


def killed(experiment: fr.Experiment, rounds: int, **inputs: Any) -> Path:
    """The same, of a run that had no time to write the last rounds into a checkpoint: journal and MLflow are ahead."""
    directory = left(experiment, rounds, **inputs)
    checkpoints(directory)[-1].unlink()
    return directory


def checkpoints(directory: Path) -> list[Path]:
    """The manifests, oldest first."""
    return sorted((directory / "checkpoints").glob("round-*.json"))


def on_paper(metrics: Any) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in DURATIONS}


def assert_as_if_nothing_had_happened(result: fr.Result, experiment: fr.Experiment, **inputs: Any) -> None:
    """Compared with a run in one piece, which neither writes nor reads anything."""
    reports = list(fr.iter_rounds(experiment, **(inputs or given())))
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
        np.testing.assert_equal(on_paper(record.metrics), on_paper(report.metrics))


def assert_recorded_once(directory: Path) -> None:
    """MLflow has every metric of every round, once, in one finished run; so has the journal."""
    place = json.loads((directory / "run.json").read_text())
    client, run_id, history = MlflowClient(place["tracking_uri"]), place["run_id"], load_records(directory)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    same_name = client.search_runs([run.info.experiment_id], f"attributes.run_name = '{run.info.run_name}'")
    assert len(same_name) == len([path for path in Path("runs").iterdir() if path.name.startswith("long-")])
    assert [record.round_index for record in history] == list(range(len(history)))
    names = {name for record in history for name in record.metrics}
    assert set(run.data.metrics) == names
    for name in names:
        points = sorted(client.get_metric_history(run_id, name), key=lambda point: point.step)
        wanted = [(r.round_index, r.metrics[name]) for r in history if name in r.metrics]
        assert [(point.step, point.value) for point in points] == wanted, name


# --- The same run, for everything that has a state


@pytest.mark.parametrize(("preset", "regularizer"), [*zip(PRESETS, [*REGULARIZERS] * 4, strict=False)])
def test_a_killed_run_ends_as_if_it_had_not_been_interrupted(preset: str, regularizer: str, uri: str) -> None:
    """For stateful presets the rows of the first part lie on disk, and those of the second in memory."""
    started = settings(uri, algorithm={"name": preset}, regularizer={"name": regularizer})
    on_disk = {"state_memory_bytes": 0} if preset in STATEFUL else {}
    killed(started.model_copy(update={"execution": started.execution.model_copy(update=on_disk)}), 5)
    resumption = resume_from(None, started)
    assert resumption is not None
    assert resumption.checkpoint.next_round == 4
    directory = left(started, ROUNDS, resumption=resumption)
    last = load_run(directory).open_checkpoints().load()
    assert last is not None
    reports = list(fr.iter_rounds(started, **given()))
    assert last.arrays["parameters"].tobytes() == reports[-1].parameters.tobytes()
    assert_same_history(load_records(directory), reports)


VARIANTS: dict[str, tuple[dict[str, Any], tuple[torch.nn.Module, ...]]] = {
    "BatchNorm's buffers": ({}, (torch.nn.BatchNorm1d(5),)),
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
    "epochs, and evaluations now and then": (
        {"federation": {"local_steps": None, "local_epochs": 2}, "evaluation": {"every": 4, "federated": True}},
        (),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_whatever_a_round_draws_or_stores_is_resumed(variant: str, uri: str) -> None:
    changes, layers = VARIANTS[variant]
    experiment = settings(uri, **changes)
    rounds = experiment.federation.rounds
    killed(experiment, rounds - 1, **given(model=network(*layers)))
    result = fr.run(experiment, **given(model=network(*layers)), resume_newest=True)
    assert result.resumed_from_round == rounds - 2
    assert_as_if_nothing_had_happened(result, experiment, **given(model=network(*layers)))
    if "BatchNorm" in variant:
        *_, last = fr.iter_rounds(experiment, **given(model=network(*layers)))
        buffers = [buffer.numpy().reshape(-1) for buffer in result.model.buffers()]
        np.testing.assert_array_equal(np.concatenate(buffers), last.buffers.astype(np.float32))


def test_the_first_checkpoint_after_a_resumption_writes_only_the_rows_that_changed(uri: str) -> None:
    experiment = settings(uri, algorithm={"name": "scaffold"}, checkpoint={"every": 1, "keep": 9})
    directory = left(experiment, 4)
    before = writes(directory / "checkpoints")
    resumption = resume_from(None, experiment)
    assert resumption is not None
    left(experiment, 5, resumption=resumption)
    after = writes(directory / "checkpoints")
    assert before.items() <= after.items()
    rows = [name.removeprefix("rows/").split("-")[0] for name in after.keys() - before.keys() if "rows/" in name]
    assert sorted(map(int, rows)) == list(load_records(directory)[4].client_ids)
    assert len(rows) < len(resumption.checkpoint.rows)


def writes(folder: Path) -> dict[str, tuple[int, int]]:
    """Of every file the inode and the time of the last write: a file that is written again has others."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_run_that_is_left_again_and_again_is_still_the_same_run(uri: str) -> None:
    """The same experiment each time, as under a supervisor that starts one command line."""
    experiment = settings(uri, algorithm={"name": "scaffold"}, checkpoint={"every": 1})
    directory = killed(experiment, 2)
    for done in (1, 2, 3):
        resumption = resume_from(None, experiment)
        assert resumption is not None
        assert resumption.checkpoint.next_round == done
        assert left(experiment, done + 1, resumption=resumption) == directory
    result = fr.run(experiment, **given(), resume_newest=True)
    assert result.resumed_from_round == 4
    assert_as_if_nothing_had_happened(result, experiment)
    assert_recorded_once(result.directory)


def test_a_failed_run_resumes_once_the_cause_is_fixed(uri: str) -> None:
    """Client 1 sends NaN. That two must count is how it is run, not what is trained."""
    schedule = [[0, 2], [2, 4], [0, 3], [0, 1], [2, 3], [3, 4]]
    strict = settings(
        uri, federation={"participation": schedule}, attacks={"nan": 0.2}, execution={"min_clients": 2}, seed=5
    )
    assert draw_attack_factors(strict.attacks, len(SIZES), strict.seed).keys() == {1}
    with pytest.raises(RoundAborted, match="round 3 aborted: 1 of 2 client updates usable, at least 2 required"):
        fr.run(strict, **given())
    (directory,) = Path("runs").iterdir()
    client = MlflowClient(uri)
    run_id = json.loads((directory / "run.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"
    lenient = settings(uri, federation={"participation": schedule}, attacks={"nan": 0.2}, seed=5)
    result = fr.run(lenient, **given(), resume_newest=True)
    assert (result.resumed_from_round, result.run_id) == (3, run_id)
    assert_as_if_nothing_had_happened(result, lenient)
    assert_recorded_once(result.directory)


def test_where_a_run_trains_and_how_it_is_kept_may_change(uri: str, session: fr.RaySession) -> None:
    """From this process to two actors; the new checkpoints lie elsewhere, and more of them."""
    experiment = settings(uri, algorithm={"name": "scaffold"}, execution={"vectorize": 2})
    directory = killed(experiment, 3)
    shares = {"placement": "pooled", "actors": 2, "cpus_per_actor": 0.1, "gpus_per_actor": 0, "retries": 0}
    kept = {"storage": str(directory.parent.parent / "kept"), "every": 1, "keep": 3}
    elsewhere = settings(uri, algorithm={"name": "scaffold"}, execution={"vectorize": 2, **shares}, checkpoint=kept)
    result = fr.run(elsewhere, **given(), session=session, resume_newest=True)
    assert (result.resumed_from_round, result.placement, len(result.places)) == (2, "pooled", 2)
    assert_as_if_nothing_had_happened(result, experiment)
    assert_recorded_once(result.directory)
    found = sorted(path.name for path in (Path("kept") / directory.name).glob("round-*.json"))
    assert found[-1] == "round-00000006.json"
    assert set(found) <= {f"round-{done:08d}.json" for done in (3, 4, 5, 6)}  # some are overtaken by the next
    assert len(found) <= 3
    assert checkpoints(directory)[-1].name == "round-00000002.json"


# --- More rounds, and fewer


def test_a_resumed_run_may_have_more_rounds_than_before(uri: str) -> None:
    short, long = settings(uri, federation={"rounds": 4}), settings(uri, federation={"rounds": 7})
    first = fr.run(short, **given())
    result = fr.run(long, **given(), resume_newest=True)
    assert (result.resumed_from_round, result.run_id, result.directory) == (4, first.run_id, first.directory)
    assert_as_if_nothing_had_happened(result, long)
    assert_recorded_once(result.directory)


def test_as_many_rounds_as_are_done_finish_a_run_that_was_left(uri: str) -> None:
    left(settings(uri), 3)
    exactly = settings(uri, federation={"rounds": 3})
    result = fr.run(exactly, **given(), resume_newest=True)
    assert result.resumed_from_round == 3
    assert_as_if_nothing_had_happened(result, exactly)
    assert_recorded_once(result.directory)


def test_fewer_rounds_than_are_done_are_refused(uri: str) -> None:
    directory = left(settings(uri), 3)
    fewer = settings(uri, federation={"rounds": 2})
    assert refusal(fewer) == [
        f"{directory.name} was started with another experiment, and cannot be resumed with this one:",
        "federation.rounds: 2 is less than the rounds done (3)",
    ]
    assert refusal(fewer, may_change=["federation"])[1:] == ["federation.rounds: 2 is less than the rounds done (3)"]


def refusal(experiment: fr.Experiment, *, may_change: Sequence[str] = (), resume: str | None = None) -> list[str]:
    """The lines of the error; the run is left as it was. Without a name, the newest run is resumed."""
    files = contents(Path.cwd())
    with pytest.raises(fr.ConfigError) as caught:
        fr.run(experiment, **given(), resume=resume, resume_newest=resume is None, may_change=may_change)
    assert contents(Path.cwd()) == files
    return list(caught.value.problems)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Another experiment


@pytest.fixture
def started(uri: str) -> Path:
    """A run of the digits that was left after round 2."""
    experiment = digits(uri)
    return left(experiment, 2, federation=None, model=None)


def digits(uri: str, **changes: Any) -> fr.Experiment:
    data = {"partition": {"clients": 4}}
    return settings(uri, **{"data": data, "model": {"hidden": 4}, "federation": {"rounds": 3}, **changes})


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
    "another width": ({"execution": {"vectorize": 3}}, ["execution.vectorize: 3, and was 1"]),
    "another name": ({"name": "other"}, ["name: 'other', and was 'long'"]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_experiment_is_refused_with_key_values_and_option(case: str, started: Path, uri: str) -> None:
    changes, lines = OTHERS[case]
    wanted = [f"{line}; --may-change {line.partition(':')[0]} allows it" for line in lines]
    first, *problems = refusal(digits(uri, **changes), resume=started.name)
    assert first == f"{started.name} was started with another experiment, and cannot be resumed with this one:"
    assert sorted(problems) == sorted(wanted)


def test_only_the_keys_that_are_named_may_change(started: Path, uri: str) -> None:
    both = digits(uri, regularizer={"clip_bound": 9}, seed=1)
    assert refusal(both, may_change=["seed", "regularizer.clip"])[1:] == [
        "regularizer.clip_bound: 9.0, and was 0.8; --may-change regularizer.clip_bound allows it"
    ]
    elsewhere = digits(uri, tracking={"experiment": "elsewhere"})
    assert refusal(elsewhere, may_change=["tracking"])[1:] == [
        f"tracking.experiment: 'elsewhere', and was '{Path.cwd().name}'"  # the MLflow run is where it is
    ]


def test_what_may_change_changes_from_there_on(uri: str) -> None:
    """All clients, each in one batch: nothing is drawn, so a new run from the same parameters gives the numbers."""
    whole = {"rounds": 4, "clients_per_round": None, "local_steps": 1, "batch_size": 100}
    still: dict[str, Any] = {"algorithm": {"local_lr_anneal": 1.0}, "federation": whole}
    decays = {"weight_decay": 0.1, "weight_decay_anneal": 1.0}
    started = settings(uri, regularizer={"name": "fednar", **decays}, **still)
    changed = settings(uri, regularizer={"name": "decoupled", **decays}, **still)
    directory = killed(started, 3)  # resumed from round 2: round 2 was recorded, and comes out differently now
    result = fr.run(changed, **given(), resume_newest=True, may_change=["regularizer"])
    assert result.resumed_from_round == 2
    first = list(fr.iter_rounds(started, **given()))[:2]
    model = network()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(first[-1].parameters.copy()), model.parameters())
    then = list(fr.iter_rounds(changed, **given(model=model)))[:2]
    np.testing.assert_allclose(result.parameters, then[-1].parameters, rtol=1e-5, atol=1e-7)
    losses = [report.metrics["test_loss"] for report in (*first, *then)]
    assert [record.metrics["test_loss"] for record in result.history] == pytest.approx(losses, rel=1e-5)
    journal = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["metrics"]["test_loss"] for line in journal] == pytest.approx(losses, rel=1e-5)


def test_other_data_in_place_of_the_federation_is_refused(uri: str) -> None:
    directory = left(settings(uri), 3)
    other = build_small_federation(SIZES, seed=1)
    with pytest.raises(fr.ConfigError, match=f"^{directory.name}: the data changed since the run was started$"):
        fr.run(settings(uri), **given(federation=other), resume_newest=True)
    with pytest.raises(fr.ConfigError, match="its checkpoint has 33 parameters, and this model has 63"):
        fr.run(settings(uri), **given(model=network(torch.nn.Linear(5, 5))), resume_newest=True)
    result = fr.run(settings(uri), **given(), resume_newest=True)  # none of this has touched the run
    assert_as_if_nothing_had_happened(result, settings(uri))
    assert_recorded_once(result.directory)


# --- Which run


def test_without_a_name_the_newest_run_of_the_experiment_is_taken(uri: str) -> None:
    older = left(settings(uri), 2)
    newer = left(settings(uri), 3)
    left(settings(uri, seed=1), 4)  # another experiment of that name
    left(settings(uri, name="long-er"), 1)  # and one whose name begins so
    result = fr.run(settings(uri), **given(), resume_newest=True)
    assert (result.directory, result.resumed_from_round) == (newer, 3)
    assert_as_if_nothing_had_happened(result, settings(uri))
    assert checkpoints(older)[-1].name == "round-00000002.json"


def test_where_all_runs_of_that_name_are_of_other_experiments_the_newest_is_named(uri: str) -> None:
    left(settings(uri, seed=1), 1)
    newer = left(settings(uri, seed=2), 1)
    assert refusal(settings(uri)) == [
        f"{newer.name} was started with another experiment, and cannot be resumed with this one:",
        "seed: 0, and was 2; --may-change seed allows it",
    ]


def test_where_there_is_no_run_a_new_one_starts(uri: str) -> None:
    left(settings(uri, name="long-er"), 1)  # of another name, which begins with this one
    left(settings(uri, name="lo"), 1)
    left(settings(uri, checkpoint={"every": None}), 0, checked=False)  # of this name, and without a checkpoint
    result = fr.run(settings(uri, federation={"rounds": 1}), **given(), resume_newest=True)
    assert result.resumed_from_round is None
    assert len(result.history) == 1


def test_a_run_is_found_by_name_id_directory_and_the_place_of_its_checkpoints(uri: str, tmp_path: Path) -> None:
    directory = left(settings(uri), 1)
    left(settings(uri), 1)
    run_id = json.loads((directory / "run.json").read_text())["run_id"]
    names = (directory.name, run_id[:8], run_id, directory, f"runs/{directory.name}", directory / "checkpoints")
    for name in names:
        resumption = resume_from(str(name), settings(uri))
        assert resumption is not None
        assert (resumption.ref.directory, resumption.run_id) == (directory, run_id)
    result = fr.run(settings(uri), **given(), resume=directory / "checkpoints")
    assert (result.directory, result.run_id, result.resumed_from_round) == (directory, run_id, 1)
    assert_recorded_once(result.directory)
    assert_as_if_nothing_had_happened(result, settings(uri))


def test_a_named_run_brings_its_own_experiment(uri: str) -> None:
    directory = left(settings(uri), 3)
    result = fr.run(**given(), resume=directory.name)
    assert result.resumed_from_round == 3
    assert_as_if_nothing_had_happened(result, settings(uri))
    with pytest.raises(fr.ConfigError, match="experiment: missing"):
        fr.run(**given(), resume_newest=True)
    with pytest.raises(fr.ConfigError, match="set only one of resume= and resume_newest="):
        fr.run(settings(uri), **given(), resume=directory.name, resume_newest=True)


def test_a_name_without_a_run_lists_those_that_are_kept(uri: str) -> None:
    with pytest.raises(fr.BadInput, match=r"nonsense: no such run.*; runs here: there are none in this directory"):
        fr.run(settings(uri), **given(), resume="nonsense")
    directory = left(settings(uri, checkpoint={"every": None}), 1, checked=False)
    with pytest.raises(fr.BadInput, match=f"nonsense: no such run, .*; runs here: {directory.name}"):
        fr.run(settings(uri), **given(), resume="nonsense")
    with pytest.raises(fr.BadInput, match=f"{directory.name} has no checkpoint in {directory}/checkpoints; start a"):
        fr.run(settings(uri), **given(), resume=directory.name)


def test_a_finished_run_gives_its_result_and_leaves_mlflow_alone(uri: str) -> None:
    experiment = settings(uri, algorithm={"name": "fedexp"})
    first = fr.run(experiment, **given())
    before = dump(uri)
    again = fr.run(experiment, **given(model=Untrainable(network())), resume_newest=True)
    assert dump(uri) == before
    assert (again.run_id, again.directory, again.tracking_uri) == (first.run_id, first.directory, first.tracking_uri)
    assert (again.resumed_from_round, again.places) == (ROUNDS, ())
    assert again.history == first.history
    assert again.parameters_sha256 == first.parameters_sha256
    for name, weights in first.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[f"inner.{name}"], weights, rtol=0, atol=0)


def dump(uri: str) -> list[str]:
    """All that MLflow's database holds."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        return list(database.iterdump())


class Untrainable(torch.nn.Module):
    """A model that is asked for nothing but its shapes: a gradient is an error."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        assert not out.requires_grad, "this model is trained"
        return out


def test_a_run_whose_directory_is_gone_resumes_from_its_storage(uri: str, tmp_path: Path) -> None:
    """As on another machine."""
    experiment = settings(uri, checkpoint={"storage": str(tmp_path / "kept")}, algorithm={"name": "feddyn"})
    directory = left(experiment, 3, checked=False)
    run_id = json.loads((directory / "run.json").read_text())["run_id"]
    shutil.rmtree("runs")
    result = fr.run(experiment, **given(), resume_newest=True)
    assert (result.resumed_from_round, result.run_id, result.directory) == (3, run_id, directory)
    assert_as_if_nothing_had_happened(result, experiment)
    assert_recorded_once(result.directory)
    shutil.rmtree("runs")
    more = settings(uri, checkpoint={"storage": str(tmp_path / "kept")}, algorithm={"name": "feddyn"})
    again = fr.run(more, **given(), resume=tmp_path / "kept" / directory.name)
    assert (again.resumed_from_round, again.run_id, again.directory) == (ROUNDS, run_id, directory)
    assert again.parameters_sha256 == result.parameters_sha256
    assert_recorded_once(again.directory)


def test_a_run_that_another_process_writes_is_left_alone(uri: str) -> None:
    directory = left(settings(uri), 2)
    being_written = "is being written by a process that is running"
    with lock_run_directory(directory), pytest.raises(fr.BadInput, match=being_written):
        fr.run(settings(uri), **given(), resume_newest=True)


# --- Damage


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def arrays_of(manifest: Path) -> Path:
    return manifest.parent / json.loads(manifest.read_text())["arrays"]["name"]


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = left(settings(uri, algorithm={"name": "scaffold"}), 5)
    older, newest = checkpoints(directory)
    arrays = arrays_of(newest)
    flip(arrays)
    experiment = settings(uri, algorithm={"name": "scaffold"})
    result = fr.run(experiment, **given(), resume_newest=True)
    (told,) = [message for message in caplog.messages if "cannot be used" in message]
    assert told == (
        f"checkpoint {newest.name} in {directory}/checkpoints cannot be used: "
        f"{arrays.name} does not hold what was written: its SHA-256 differs"
    )
    assert older.name == "round-00000004.json"
    assert result.resumed_from_round == 4
    assert_as_if_nothing_had_happened(result, experiment)
    assert_recorded_once(result.directory)


def test_where_every_checkpoint_is_damaged_nothing_is_made_up(uri: str) -> None:
    directory = left(settings(uri), 5)
    for manifest in checkpoints(directory):
        flip(arrays_of(manifest))
    files, before = contents(directory), dump(uri)
    wanted: list[dict[str, Any]] = [{"resume_newest": True}, {"resume": directory.name}]
    for each in wanted:
        with pytest.raises(CheckpointError, match=f"every checkpoint in {directory}/checkpoints is damaged: "):
            fr.run(settings(uri), **given(), **each)
    assert contents(directory) == files
    assert dump(uri) == before


# --- As typed commands

TYPED_ROUNDS = 45


def typed(uri: str, every: int) -> list[str]:
    """One command line for a run of rounds that take a while, as it stands under a supervisor that restarts it."""
    work = {"rounds": TYPED_ROUNDS, "local_steps": 40, "batch_size": 32}
    experiment = digits(uri, algorithm={"name": "scaffold"}, federation=work, checkpoint={"every": every})
    Path("long.yaml").write_text(config.dump(experiment), encoding="utf-8")
    return [FEDNAR, "run", "long.yaml", "--resume", "--json"]


def said_to(command: list[str], number: signal.Signals, done: Callable[[], int], rounds: int) -> tuple[int, str]:
    """Send a command a signal once so many rounds are done: its exit code, and what it said."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: done() >= rounds or process.poll() is not None, pause=0.002)
            process.send_signal(number)
            output, said = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert output == ""
    assert "Traceback" not in said
    return process.returncode, said


def finished(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself, without an error."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done


def rounds_recorded() -> int:
    return max((len(load_records(path)) for path in Path("runs").glob("long-*")), default=0)


def newest_checkpoint() -> int:
    return max((int(path.stem.partition("-")[2]) for path in Path("runs").rglob("round-*.json")), default=0)


def uninterrupted() -> str:
    """The SHA-256 of the final parameters of a run in one piece."""
    *_, last = fr.iter_rounds(fr.load("long.yaml"))
    return hashlib.sha256(last.parameters.tobytes()).hexdigest()


@pytest.mark.usefixtures("processes")
def test_one_command_that_is_killed_terminated_and_interrupted_ends_in_the_same_bytes(uri: str) -> None:
    command = typed(uri, every=7)
    code, said = said_to(command, signal.SIGKILL, newest_checkpoint, 7)
    assert code == -signal.SIGKILL, said
    assert "no run of 'long' to resume; starting a new one" in said
    (directory,) = Path("runs").absolute().iterdir()
    run_id = json.loads((directory / "run.json").read_text())["run_id"]
    for number, wanted, word in ((signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")):
        start, done = newest_checkpoint(), rounds_recorded()
        assert 7 <= start <= done < TYPED_ROUNDS
        code, said = said_to(command, number, rounds_recorded, done + 8)
        assert code == wanted, said
        assert f"INFO resuming {directory.name} at round {start}" in said
        assert said.splitlines()[-1] == f"{word}; fednar runs shows what can be resumed"
        assert done < newest_checkpoint() == rounds_recorded() < TYPED_ROUNDS
        assert MlflowClient(uri).get_run(run_id).info.status == "KILLED"
    start = newest_checkpoint()
    (row,) = [line for line in finished([FEDNAR, "runs"]).stdout.splitlines() if directory.name in line]
    assert f"{start}/{TYPED_ROUNDS}" in row
    assert f"resumes from round {start}" in row
    summary = json.loads(finished(command).stdout)
    assert (summary["directory"], summary["run_id"]) == (str(directory), run_id)
    assert (summary["resumed_from_round"], summary["rounds"]) == (start, TYPED_ROUNDS)
    assert summary["parameters_sha256"] == uninterrupted()
    assert_recorded_once(directory)
    assert json.loads(finished(command).stdout) == {**summary, "resumed_from_round": TYPED_ROUNDS}
