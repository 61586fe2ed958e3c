"""Finds the run to resume and its checkpoint, and checks that the experiment has not changed."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednar_ray.checkpoint.store import Checkpoint, CheckpointStore
from fednar_ray.config import Experiment, flatten_settings
from fednar_ray.core.errors import BadInput, CheckpointError, ConfigError, FednarError, StorageUnavailable, format_value
from fednar_ray.experiments.checkpoint_contents import read_run_experiment
from fednar_ray.experiments.fixed_execution import fix_execution
from fednar_ray.tracking import run_lookup
from fednar_ray.tracking.identity import Identity, find_original, read_identity
from fednar_ray.tracking.locks import lock_run_directory
from fednar_ray.tracking.run_lookup import RunRef

log = logging.getLogger("fednar_ray")

ROUNDS = "federation.rounds"
FREE = ("execution.", "checkpoint.", "report.", "secure_aggregation.threshold", "secure_aggregation.directory")
"""Settings that do not change the result of a run."""
FIXED = ("execution.vectorize", "execution.compile", "execution.precision", "tracking.")
"""Settings that may not change: three of them change rounding, and the MLflow run cannot be moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """A run to resume, and the checkpoint that it resumes from."""

    ref: RunRef
    checkpoint: Checkpoint
    checkpoints: CheckpointStore  # knows which files the checkpoint has, so that they are not written again
    experiment: Experiment
    run_id: str
    tracking_uri: str
    data_digest: str
    identity: Identity | None  # the content of run.json; None if it is missing or damaged
    copied_from: Path | None  # the original, if the run directory is a copy of one that still exists
    rewrites: bool  # whether rounds recorded after the checkpoint may differ now, and are recorded again


def load_started_experiment(run: str) -> Experiment:
    """Loads the experiment that a run was started with.

    Raises:
        BadInput: There is no such run, or it has no checkpoint.
    """
    ref = run_lookup.find_run(run)
    return read_run_experiment(_load_checkpoint(ref, ref.open_checkpoints()))


def _load_checkpoint(ref: RunRef, checkpoints: CheckpointStore) -> Checkpoint:
    checkpoint = checkpoints.load()
    if checkpoint is not None:
        return checkpoint
    if ref.files.comparison_yaml.exists():
        raise BadInput(f"{ref.name} is a comparison; resume it with: fednar compare --resume {ref.name}")
    raise BadInput(f"{ref.name} has no checkpoint in {ref.storage}; start a new run, without --resume")


def resume_from(run: str | None, experiment: Experiment | None, may_change: Sequence[str] = ()) -> Resumption | None:
    """Finds a run to resume, and its newest intact checkpoint.

    Args:
        run: The run's name, id or directory, or the place of its checkpoints. None: the newest run of the experiment.
        experiment: The experiment to train. None: the one that the run was started with.
        may_change: Keys or sections that may differ from those that the run was started with.

    Returns:
        The run and its checkpoint; None if ``run`` is None and the experiment has no run with a checkpoint.

    Raises:
        ConfigError: The experiment differs from the one that the run was started with in a key that may not change.
        BadInput: ``run`` names no run, or it has no checkpoint.
        CheckpointError: Every checkpoint is damaged, or was written by another version.
    """
    if run is None:
        assert experiment is not None
        return _resume_newest(experiment, may_change)
    ref = run_lookup.find_run(run)
    checkpoints = ref.open_checkpoints()
    return _build_resumption(ref, checkpoints, _load_checkpoint(ref, checkpoints), experiment, may_change)


def _resume_newest(experiment: Experiment, may_change: Sequence[str]) -> Resumption | None:
    problems: list[FednarError] = []
    for ref in run_lookup.list_runs_of(experiment):
        try:
            checkpoints = ref.open_checkpoints()
            checkpoint = checkpoints.load()
            if checkpoint is not None:
                return _build_resumption(ref, checkpoints, checkpoint, experiment, may_change)
        except ConfigError as error:  # another experiment of that name
            problems.append(error)
        except (CheckpointError, StorageUnavailable, OSError) as error:
            log.warning("%s cannot be resumed: %s", ref.name, error)
            problems.append(error if isinstance(error, FednarError) else CheckpointError(f"{ref.name}: {error}"))
    if problems:
        raise problems[0]  # the newest run's
    return None


def _build_resumption(
    ref: RunRef,
    checkpoints: CheckpointStore,
    checkpoint: Checkpoint,
    wanted: Experiment | None,
    may_change: Sequence[str],
) -> Resumption:
    recorded, facts = read_run_experiment(checkpoint), checkpoint.facts
    chosen = facts["group_size"], facts["compiled"]
    before = fix_execution(recorded, *chosen)
    experiment = before if wanted is None else fix_execution(wanted, *chosen)
    rewrites = _check_changes(before, experiment, checkpoint.next_round, may_change, ref.name)
    identity = _read_identity(ref)
    original = None if identity is None else find_original(ref.directory, identity)
    if original is not None:
        _check_storage(ref, original, experiment)
    return Resumption(
        ref=ref,
        checkpoint=checkpoint,
        checkpoints=checkpoints,
        experiment=experiment,
        run_id=facts["run_id"] if identity is None else identity.run_id,
        tracking_uri=facts["tracking_uri"] if identity is None else identity.tracking_uri,
        data_digest=facts["data_digest"],
        identity=identity,
        copied_from=original,
        rewrites=rewrites,
    )


def _check_storage(ref: RunRef, original: Path, experiment: Experiment) -> None:
    """Raises BadInput if a copy and its original would write their checkpoints into one place."""
    if ref.storage == run_lookup.find_checkpoint_location(experiment, original):
        raise BadInput(
            f"{ref.directory} is a copy of {original}, and both keep their checkpoints in {ref.storage}; resume the "
            f"original: fednar run --resume {shlex.quote(str(original))}"
        )


def _read_identity(ref: RunRef) -> Identity | None:
    """Reads which MLflow run the directory belongs to. Raises BadInput if another process writes the directory."""
    if ref.files.lock.exists():
        with lock_run_directory(ref.directory):
            pass
    try:
        return read_identity(ref.directory)
    except BadInput:
        return None


def _check_changes(started: Experiment, wanted: Experiment, done: int, may_change: Sequence[str], name: str) -> bool:
    """Returns whether anything differs that changes the training. Raises ConfigError for what may not differ."""
    before, after = flatten_settings(started), flatten_settings(wanted)
    different = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    problems = [p for key in different if (p := _find_problem(key, before, after, done, may_change)) is not None]
    if problems:
        raise ConfigError(
            (f"{name} was started with another experiment, and cannot be resumed with this one:", *problems)
        )
    return any(key != ROUNDS and not key.startswith(FREE) for key in different)


def _find_problem(
    key: str, before: Mapping[str, Any], after: Mapping[str, Any], done: int, may_change: Sequence[str]
) -> str | None:
    """Returns why a key may not differ; None if it may."""
    private = before.get("privacy.delta") is not None or after.get("privacy.delta") is not None
    if key == ROUNDS and (before.get("privacy.epsilon") or before.get("privacy.examples.epsilon")) is not None:
        text = f"the noise was chosen for {before[key]} rounds, and privacy.epsilon is spent after them"
        return f"{key}: {after[key]}: {text}; a new run can plan for another number"
    if key == ROUNDS:
        return None if after[key] >= done else f"{key}: {after[key]} is less than the rounds done ({done})"
    if key.startswith(FREE) and not key.startswith(FIXED):
        return None
    allowed = any(key == free or key.startswith(f"{free}.") for free in may_change)
    if allowed and not private and not key.startswith("tracking."):
        return None
    if private:
        text = "what is resumed was released with the noise of its own settings"
        return (
            f"{key}: {format_value(after.get(key))}, and was {format_value(before.get(key))}: {text}; start a new run"
        )
    hint = "" if key.startswith("tracking.") else f"; --may-change {key} allows it"
    return f"{key}: {format_value(after.get(key))}, and was {format_value(before.get(key))}{hint}"
