"""From a kept run to where it goes on, if the experiment is still the same."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednar_ray.checkpoint.store import Checkpoint, CheckpointStore
from fednar_ray.config import Experiment, dotted
from fednar_ray.core.errors import BadInput, CheckpointError, ConfigError, FednarError, StorageUnavailable, shown
from fednar_ray.experiments.checkpoint_contents import experiment_of_run
from fednar_ray.tracking import run_lookup
from fednar_ray.tracking.identity import Identity, identity_of, original_of
from fednar_ray.tracking.lines import sole_writer
from fednar_ray.tracking.run_lookup import RunRef

log = logging.getLogger("fednar_ray")

ROUNDS = "federation.rounds"
FREE = ("execution.", "checkpoint.")  # where a run trains, and how it is kept, do not change what it trains
FIXED = ("execution.vectorize", "tracking.")  # the width decides the bytes; the MLflow run is where it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """Where a run goes on."""

    kept: RunRef
    checkpoint: Checkpoint
    checkpoints: CheckpointStore  # it knows what the checkpoint holds, which need not be written again
    experiment: Experiment
    run_id: str
    tracking_uri: str
    data_digest: str
    identity: Identity | None  # what its directory says of itself; None where it is gone, or damaged
    copied_from: Path | None  # the directory that its own is a copy of, which is still there
    anew: bool  # rounds that were recorded after the checkpoint may come out differently now


def begun(wanted: str) -> Experiment:
    """The experiment of a kept run. Raises BadInput where there is none, or it has no checkpoint."""
    kept = run_lookup.find_run(wanted)
    return _as_begun(_loaded(kept, kept.open_checkpoints()))


def _as_begun(checkpoint: Checkpoint) -> Experiment:
    return experiment_of_run(checkpoint)


def _loaded(kept: RunRef, checkpoints: CheckpointStore) -> Checkpoint:
    checkpoint = checkpoints.load()
    if checkpoint is None:
        if kept.files.comparison_yaml.exists():
            raise BadInput(f"{kept.name} is a comparison; resume it with: fednar compare --resume {kept.name}")
        raise BadInput(f"{kept.name} has no checkpoint in {kept.storage}; start it anew, without --resume")
    return checkpoint


def resume_from(wanted: str | None, experiment: Experiment | None, may_change: Sequence[str] = ()) -> Resumption | None:
    """The run that ``wanted`` names, or the newest of the experiment (None: there is none to go on with).

    ``experiment`` None: as the run was begun.  ``may_change``: keys, or sections, that may differ from then.
    Raises ConfigError for other differences, BadInput where ``wanted`` names no run or has no checkpoint, and
    CheckpointError where every checkpoint is damaged.
    """
    if wanted is not None:
        kept = run_lookup.find_run(wanted)
        checkpoints = kept.open_checkpoints()
        return _resumption(kept, checkpoints, _loaded(kept, checkpoints), experiment, may_change)
    assert experiment is not None
    problems: list[FednarError] = []
    for kept in run_lookup.list_runs_of(experiment):
        try:
            checkpoints = kept.open_checkpoints()
            checkpoint = checkpoints.load()
            if checkpoint is not None:
                return _resumption(kept, checkpoints, checkpoint, experiment, may_change)
        except ConfigError as error:  # another experiment of that name
            problems.append(error)
        except (CheckpointError, StorageUnavailable, OSError) as error:
            log.warning("%s cannot be resumed: %s", kept.name, error)
            problems.append(error if isinstance(error, FednarError) else CheckpointError(f"{kept.name}: {error}"))
    if problems:
        raise problems[0]  # of the newest
    return None


def _resumption(
    kept: RunRef,
    checkpoints: CheckpointStore,
    checkpoint: Checkpoint,
    wanted: Experiment | None,
    may_change: Sequence[str],
) -> Resumption:
    facts = checkpoint.facts
    before = _of_width(_as_begun(checkpoint), facts["group_size"])
    experiment = before if wanted is None else _of_width(wanted, facts["group_size"])
    anew = _differs(before, experiment, checkpoint.next_round, may_change, kept.name)
    identity = _identity(kept)
    original = None if identity is None else original_of(kept.directory, identity)
    if original is not None:
        _check_storage(kept, original, experiment)
    return Resumption(
        kept=kept,
        checkpoint=checkpoint,
        checkpoints=checkpoints,
        experiment=experiment,
        run_id=facts["run_id"] if identity is None else identity.run_id,
        tracking_uri=facts["tracking_uri"] if identity is None else identity.tracking_uri,
        data_digest=facts["data_digest"],
        identity=identity,
        copied_from=original,
        anew=anew,
    )


def _check_storage(kept: RunRef, original: Path, experiment: Experiment) -> None:
    """Raises BadInput where a copy and its original would write their checkpoints into one place."""
    if kept.storage == run_lookup.checkpoint_location(experiment, original):
        raise BadInput(
            f"{kept.directory} is a copy of {original}, and both keep their checkpoints in {kept.storage}; resume the "
            f"original: fednar run --resume {shlex.quote(str(original))}"
        )


def _identity(kept: RunRef) -> Identity | None:
    """What the run's directory says of itself. Raises BadInput where another process writes it."""
    if kept.files.lock.exists():
        with sole_writer(kept.directory):
            pass
    try:
        return identity_of(kept.directory)
    except BadInput:
        return None


def _of_width(experiment: Experiment, width: int) -> Experiment:
    """With the client group width that ``auto`` came to when the run was begun, whatever would be chosen here."""
    if experiment.execution.vectorize != "auto":
        return experiment
    execution = experiment.execution.model_copy(update={"vectorize": width})
    return experiment.model_copy(update={"execution": execution})


def _differs(begun: Experiment, wanted: Experiment, done: int, may_change: Sequence[str], name: str) -> bool:
    """Does anything differ that bears on training? Raises ConfigError for what may not."""
    before, after = dotted(begun), dotted(wanted)
    different = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    problems = [p for key in different if (p := _problem(key, before, after, done, may_change)) is not None]
    if problems:
        raise ConfigError((f"{name} was begun with another experiment, and cannot go on with this one:", *problems))
    return any(key != ROUNDS and not key.startswith(FREE) for key in different)


def _problem(
    key: str, before: Mapping[str, Any], after: Mapping[str, Any], done: int, may_change: Sequence[str]
) -> str | None:
    """Why a key may not differ; None where it may."""
    if key == ROUNDS:
        return None if after[key] >= done else f"{key}: {after[key]} is less than the rounds done ({done})"
    if key.startswith(FREE) and not key.startswith(FIXED):
        return None
    told = any(key == free or key.startswith(f"{free}.") for free in may_change)
    if told and not key.startswith("tracking."):
        return None
    hint = "" if key.startswith("tracking.") else f"; --may-change {key} allows it"
    return f"{key}: {shown(after.get(key))}, and was {shown(before.get(key))}{hint}"
