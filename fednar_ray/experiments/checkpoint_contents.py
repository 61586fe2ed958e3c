"""Checks that a checkpoint contains what a run or a trial needs.

A checkpoint whose checksums are right is undamaged. If its contents still differ, another version has written it: it is
refused with its file and the difference. No older checkpoint is used instead, because rounds would be lost silently.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednar_ray.checkpoint.store import Checkpoint
from fednar_ray.config import Experiment
from fednar_ray.config.problems import describe
from fednar_ray.core.errors import ConfigError, format_text
from fednar_ray.federated.server_state import (
    BUFFERS,
    PARAMETERS,
    SERVER,
    ServerSide,
    build_contents_error,
    find_differences,
)
from fednar_ray.tracking.journal import parse_line

Scalar = float | list[float] | list[list[float]]
Text = Annotated[str, Field(min_length=1)]


RENAMED_FACTS = {"cohort_width": "group_size"}
"""The name of a fact in checkpoints of earlier versions → its current name."""


class _Facts(BaseModel):
    """A section of the facts. Unknown entries were added by a later version, and are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _ServerFacts(_Facts):
    """What the server carries from round to round besides vectors."""

    scalars: dict[str, Scalar]
    server_lr: Scalar | None
    vectors: list[str] | None = None  # their names; older checkpoints do not name them
    shared: list[str] = []  # names of the vectors that the client correction shares
    norm_bound: Annotated[float, Field(gt=0)] | None = None  # of updates, if the server adapts it


class _TrialFacts(_Facts):
    """The facts of a trial's checkpoint."""

    experiment: dict[str, Any]
    server: _ServerFacts
    privacy_key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None  # the name of a secret key


class _RunFacts(_TrialFacts):
    """The facts of a run's checkpoint."""

    experiment_sha256: Text
    data_digest: Text
    run_id: Text
    tracking_uri: Text
    placement: Literal["serial", "pooled", "dedicated"]
    group_size: Annotated[int, Field(ge=1)]
    compiled: Annotated[bool, Field(strict=True)]


def read_run_experiment(checkpoint: Checkpoint) -> Experiment:
    """Returns the experiment of a run's checkpoint. Raises CheckpointError if it lacks what a run needs."""
    return _validate(checkpoint, _RunFacts)


def read_trial_experiment(checkpoint: Checkpoint) -> Experiment:
    """Returns the experiment of a trial's checkpoint. Raises CheckpointError if it lacks what a trial needs."""
    return _validate(checkpoint, _TrialFacts)


def check_fits(checkpoint: Checkpoint, start: ServerSide, name: str) -> None:
    """Checks that a checkpoint was written by a run with this model and algorithm.

    Args:
        checkpoint: The checkpoint; its own contents agree with each other.
        start: The server's side before round 0 of the run that is to be resumed.
        name: The name of the run, for messages.

    Raises:
        ConfigError: The run was started with a model that has other parameters or buffers.
        CheckpointError: The checkpoint holds something else than such a run writes.
    """
    for what, vector in ((PARAMETERS, start.server.parameters), (BUFFERS, start.buffers)):
        values = len(checkpoint.arrays[what])
        if values != len(vector):
            kind = "parameters" if what == PARAMETERS else "values of averaged buffers"
            text = f"its checkpoint has {values} {kind}, and this model has {len(vector)}"
            raise ConfigError((f"{name}: {text}; resume it with the model and version that it was started with",))
    problem = next(find_differences(checkpoint, start), None)
    if problem is not None:
        raise build_contents_error(checkpoint, problem)


def _validate(checkpoint: Checkpoint, schema: type[_TrialFacts]) -> Experiment:
    renamed = [f"facts.{old} is now facts.{new}" for old, new in RENAMED_FACTS.items() if old in checkpoint.facts]
    if renamed:
        problems = [*renamed, *_find_experiment_problems(checkpoint.facts.get("experiment"))]
        raise build_contents_error(checkpoint, "; ".join(problems))
    try:
        facts = schema.model_validate(dict(checkpoint.facts))
    except ValidationError as error:
        raise build_contents_error(checkpoint, "; ".join(describe(error, "facts."))) from None
    problem = next(_find_problems(checkpoint, facts), None)
    if problem is not None:
        raise build_contents_error(checkpoint, problem)
    problems = _find_experiment_problems(facts.experiment)
    if problems:
        raise build_contents_error(checkpoint, "; ".join(problems))
    return Experiment.model_validate(facts.experiment)


def _find_experiment_problems(experiment: object) -> list[str]:
    """Finds why the recorded experiment is invalid in this version, one line each."""
    try:
        Experiment.model_validate(experiment)
    except ValidationError as error:
        return list(describe(error, "facts.experiment.", "facts.experiment"))
    return []


def _find_problems(checkpoint: Checkpoint, facts: _TrialFacts) -> Iterator[str]:
    """Finds what is missing, unknown, or has another form, arrays first."""
    arrays = checkpoint.arrays
    vectors = {name.removeprefix(SERVER) for name in arrays if name.startswith(SERVER)}
    wanted = vectors if facts.server.vectors is None else set(facts.server.vectors)
    known = {PARAMETERS, BUFFERS, *facts.server.shared}
    for name in (PARAMETERS, BUFFERS, *facts.server.shared, *(f"{SERVER}{vector}" for vector in sorted(wanted))):
        if name not in arrays:
            yield f"the array {name} is missing"
    for name, array in arrays.items():
        if name not in known and name.removeprefix(SERVER) not in wanted:
            yield f"the array {format_text(name)} is unknown"
        elif name != BUFFERS and array.shape != arrays[PARAMETERS].shape:
            shapes = f"{array.shape}, and {PARAMETERS} of {arrays[PARAMETERS].shape}"
            yield f"the array {format_text(name)} is of shape {shapes}"
        elif array.ndim != 1:
            yield f"the array {format_text(name)} is of shape {array.shape}, not one vector"
    if len(checkpoint.history) != checkpoint.next_round:
        yield f"the history has {len(checkpoint.history)} rounds, not {checkpoint.next_round}"
    for index, line in enumerate(checkpoint.history):
        if not _is_round(line, index):
            yield f"line {index + 1} of the history is not the record of round {index}"


def _is_round(line: str, index: int) -> bool:
    try:
        record = parse_line(line)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return False
    numbers = (*record.metrics.values(), *record.client_ids, *record.step_norms.values(), *record.norm_quantiles)
    return record.round_index == index and all(type(number) in (int, float) for number in numbers)
