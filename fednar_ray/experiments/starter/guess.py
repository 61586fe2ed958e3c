"""Guesses an experiment's settings from a survey of the tables: what is predicted, from what, and by which model."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fednar_ray.config.source_base import TaskName
from fednar_ray.core.errors import BadInput
from fednar_ray.core.metric_names import RARE
from fednar_ray.data.sources.agreement import has_too_many_levels
from fednar_ray.experiments.starter.survey import ColumnSurvey, TablesSurvey

LABELS = ("label", "labels", "target", "y", "outcome", "class", "diagnosis", "response", "result")
GROUPS = (
    "hospital",
    "site",
    "client",
    "silo",
    "group",
    "center",
    "centre",
    "clinic",
    "institution",
    "branch",
    "region",
    "ward",
    "device",
    "user",
)
IDENTIFIERS = ("id", "index", "row", "unnamed: 0", "patient", "patient_id", "record_id", "uuid")
SHOWN_FEATURES = 30  # with more, and none left out, the file does not list them
MOST_CLASSES = 20  # whole numbers with more distinct values are a regression
MOST_CLASS_NAMES = 50  # text with more distinct values is no label
SHOWN_LEVELS = 8
TEST_SHARE = 0.2
MANY_GAPS = 0.2  # a column with a larger share of missing values is named in the file
ROWS_PER_CLIENT = 50  # of one table that has no groups
FEW_ROWS = 500  # up to here the model is linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What the experiment predicts, and from what.

    Attributes:
        label: The column to predict.
        label_reason: Why this column, in words.
        task: The task.
        task_reason: Why this task, in words.
        features: The columns that are inputs.
        left_out: Columns that are not inputs → the reason.
        groups: The column whose values are the clients; None for a folder, or if the rows are divided at random.
        clients: The number of clients.
    """

    label: str
    label_reason: str
    task: TaskName
    task_reason: str
    features: tuple[str, ...]
    left_out: dict[str, str]
    groups: str | None
    clients: int


def guess(survey: TablesSurvey, label: str | None, task: TaskName | None, groups: str | None) -> Guess:
    """Guesses what is not given.

    Args:
        survey: What the tables hold.
        label: The column to predict; None: guess.
        task: The task; None: guess.
        groups: The column whose values are the clients of one table; None: guess.

    Raises:
        BadInput: A column that is given does not exist or cannot be used. The message lists all that is wrong.
    """
    wrong = [*_find_wrong_names(survey, {"--label": label, "--groups": groups})]
    if groups is not None and survey.is_folder:
        wrong.append("--groups: each file in the folder is a client; --groups belongs to one table")
    if wrong:
        raise BadInput("\n".join(wrong))
    column, why = _guess_label(survey, groups) if label is None else (survey.find_label(label), "given")
    assert column is not None
    if column.mixture:
        raise BadInput(f"{column.name}: the label {column.mixture}; write it alike in all files, or use --label")
    if len(column.levels) < 2:
        held = "no value" if not column.levels else f"only the value {next(iter(column.levels))!r}"
        raise BadInput(f"{column.name}: the label has {held}; choose another with --label")
    if task == "binary" and len(column.levels) > 2:
        shown = ", ".join(map(str, list(column.levels)[:SHOWN_LEVELS])) + (", …" * (len(column.levels) > SHOWN_LEVELS))
        remedy = "; ".join(column.alike) or "use --task classification, or choose another label"
        raise BadInput(f"--task binary: {column.name} has {len(column.levels)} values, {shown}; {remedy}")
    found, task_why = _guess_task(survey, column) if task is None else (task, "given")
    own = None if survey.is_folder else groups or _guess_groups(survey, column)
    left_out = dict(_iter_left_out(survey, (column.name, own)))
    features = [c.name for c in survey.columns if c.name not in (column.name, own) and c.name not in left_out]
    if not features:
        raise BadInput(f"{survey.path}: no column is left as an input: {_join(left_out)}")
    return Guess(
        label=column.name,
        label_reason=why,
        task=found,
        task_reason=task_why,
        features=tuple(features),
        left_out=left_out,
        groups=own,
        clients=_count_clients(survey, own),
    )


def _find_wrong_names(survey: TablesSurvey, given: dict[str, str | None]) -> Iterator[str]:
    known = [column.name for column in survey.columns]
    for option, name in given.items():
        if name is not None and name not in known:
            only = survey.only_some.get(name)
            if only is not None:
                yield f"{option}: {name!r}: only {', '.join(only)} has this column"
                continue
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            yield f"{option}: {name!r}: there is no such column; {hint}"


def _guess_label(survey: TablesSurvey, groups: str | None) -> tuple[ColumnSurvey, str]:
    """Returns the column with a label's name, or else the last one that varies."""
    by_name = {column.name.strip().casefold(): column for column in survey.labels if column.name != groups}
    named = next((by_name[name] for name in LABELS if name in by_name), None)
    if named is not None:
        return named, "by its name"
    varying = [column for column in by_name.values() if len(column.levels) > 1]
    if not varying:
        raise BadInput(f"{survey.path}: every column is constant; there is nothing to predict")
    return varying[-1], "the last column"


def _guess_task(survey: TablesSurvey, label: ColumnSurvey) -> tuple[TaskName, str]:
    distinct, as_input = len(label.levels), survey.find(label.name)
    if distinct > 2 and as_input is not None and as_input.kind == "date":
        raise BadInput(f"{label.name}: the label is a date; choose another with --label")
    if label.kind == "category" and distinct > MOST_CLASS_NAMES:
        raise BadInput(f"{label.name}: the label is text with {distinct} different values; choose another with --label")
    if distinct == 2:
        return "binary", "two values"
    if label.kind == "category":
        return "classification", f"text with {distinct} values"
    if label.is_whole and distinct <= MOST_CLASSES and min(label.levels) >= 0:
        return "classification", f"whole numbers with {distinct} values"
    return "regression", "numbers"


def _guess_groups(survey: TablesSurvey, label: ColumnSurvey) -> str | None:
    """Returns the column that names the clients of one table: one with such a name and few distinct values."""
    total = sum(survey.rows.values())
    for column in survey.labels:
        name = column.name.strip().casefold().removesuffix("_id").removesuffix("_name")
        few = 2 <= len(column.levels) <= total // 10 and not column.missing and not column.mixture
        if column.name != label.name and name in GROUPS and few:
            return column.name
    return None


def _iter_left_out(survey: TablesSurvey, taken: Sequence[str | None]) -> Iterator[tuple[str, str]]:
    """Yields the columns that are not inputs, each with the reason."""
    total = sum(survey.rows.values())
    for column in survey.columns:
        distinct = len(column.levels)
        if column.name in taken:
            continue
        if column.mixture:
            yield column.name, column.mixture
        elif distinct < 2:
            yield column.name, "is constant" if distinct else "has no values"
        elif distinct == total and (column.name.strip().casefold() in IDENTIFIERS or column.kind == "category"):
            yield column.name, "differs in every row, like an identifier"
        elif column.kind == "category" and has_too_many_levels(distinct, int((1 - TEST_SHARE) * total)):
            yield column.name, f"is text with {distinct} different values"
    for name, files in survey.only_some.items():
        yield name, f"only {', '.join(files[:3])} has it"


def _count_clients(survey: TablesSurvey, groups: str | None) -> int:
    if survey.is_folder:
        return len(survey.rows)
    column = None if groups is None else survey.find_label(groups)
    total = sum(survey.rows.values())
    return len(column.levels) if column is not None else max(2, min(10, total // ROWS_PER_CLIENT))


def _join(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name} {why}" for name, why in reasons.items())


def build_settings(survey: TablesSurvey, found: Guess, name: str, csv: Mapping[str, str | None]) -> dict[str, Any]:
    """Builds the ``experiment`` section: only keys that the user may want to see or change.

    Args:
        survey: What the tables hold.
        found: What is predicted, and from what.
        name: The experiment's name.
        csv: How text files are written, as far as the user says so.
    """
    total = sum(survey.rows.values())
    per_client = total // found.clients
    model: dict[str, Any] = {"name": "logistic"} if total <= FEW_ROWS else {"name": "mlp", "hidden": 32}
    if find_rare_label(survey, found) is not None:
        model["class_weights"] = None
    return {
        "name": name,
        "seed": 0,
        "data": _build_data(survey, found, csv),
        "model": model,
        "federation": {
            "rounds": 20,
            "local_epochs": 1,
            "batch_size": next((size for size in (32, 16, 8) if per_client >= 8 * size), 4),
        },
        "algorithm": {"name": "fedavg", "local_lr": 0.1},
        "regularizer": {"name": "fednar", "weight_decay": 0.01, "clip_bound": 10.0},
        "execution": {"placement": "auto"},
    }


def build_notes(survey: TablesSurvey, found: Guess) -> dict[str, str]:
    """Builds what the comments of an experiment file say besides the meaning of a key, by key."""
    total = sum(survey.rows.values())
    gaps = [
        f"{column.name} {column.missing / total:.0%}"
        for column in survey.columns
        if column.name in found.features and column.missing > MANY_GAPS * total
    ]
    rare = find_rare_label(survey, found)
    return {
        "data.label": f"Chosen: {found.label_reason}.",
        "data.task": f"Chosen: {found.task_reason}.",
        "data.features": "".join(f"Left out: {each} {why}. " for each, why in found.left_out.items()),
        "data.missing": f"Many values are missing of: {', '.join(gaps)}." if gaps else "",
        "model.class_weights": ""
        if rare is None
        else f"Only {rare[1]:.1%} of the labels are {rare[0]}. With balanced, the model predicts it more often; its "
        "probabilities are then too high.",
    }


def find_rare_label(survey: TablesSurvey, found: Guess) -> tuple[str, float] | None:
    """Finds the rarer of two labels and its share, if it is so rare that runs are judged by their AUC; else None."""
    label = survey.find_label(found.label)
    if found.task != "binary" or label is None or len(label.levels) != 2:
        return None
    name, count = min(label.levels.items(), key=lambda item: item[1])
    share = count / sum(label.levels.values())
    return (f"{name:g}" if isinstance(name, float) else str(name), share) if share < RARE else None


def _build_data(survey: TablesSurvey, found: Guess, csv: Mapping[str, str | None]) -> dict[str, Any]:
    where: dict[str, Any] = (
        {"source": "folder", "directory": str(survey.path)}
        if survey.is_folder
        else {"source": "table", "path": str(survey.path)}
    )
    if found.groups is not None:
        where["groups"] = found.groups
    inputs = [column for column in survey.columns if column.name in found.features]
    label = survey.find_label(found.label)
    data = {**where, "label": found.label, "task": found.task}
    if found.left_out or len(found.features) <= SHOWN_FEATURES:
        data["features"] = list(found.features)
    if label is not None and label.missing:
        data["missing"] = "drop"
    elif any(column.missing for column in inputs):
        data["missing"] = "mean"
    if csv:
        data["csv"] = dict(csv)
    data["test_share"] = TEST_SHARE
    if not survey.is_folder and found.groups is None:
        data["partition"] = {"kind": "iid", "clients": found.clients}
    return data
