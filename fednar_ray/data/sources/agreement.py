"""Agrees on the kinds, levels and classes of tables over all clients, from the sets of each client alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fednar_ray.config.tables import TabularSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.fednar_table_schema import ColumnSchema, Kind, TableSchema

MOST_LEVELS = 100
"""Above this number of levels, a column of text is refused unless ``data.types`` calls it a category."""
FEW_LEVELS = 10
"""Up to this number of levels, a column of text is a category even if each row has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFacts:
    """What is known of one column of one client's file.

    Attributes:
        name: The column's name.
        kind: number, boolean, date, category or empty.
        example: The place of the first value, and the value if it may be shown.
        levels: The levels of a category, or the classes of a label, of the training rows.
        test_places: The place of the first test row of each level or class that no training row of this client has.
        missing: The number of training rows without a value.
    """

    name: str
    kind: str
    example: str
    levels: tuple[str, ...] = ()
    test_places: Mapping[str, str]
    missing: int = 0


Facts = Sequence[ColumnFacts]
"""The facts of one file: of its inputs in order, then of its label."""


def agree_on_schema(settings: TabularSettings, paths: Sequence[str], facts: Sequence[Facts], rows: int) -> TableSchema:
    """Agrees on the schema that all clients share.

    Args:
        settings: The ``data`` section.
        paths: Each client's file, for messages.
        facts: The facts of each client's file.
        rows: The number of training rows of all clients.

    Raises:
        DataError: A column differs in kind between clients, has too many levels or a level that only test rows have, or
            the label does not fit the task. The message has one line per problem.
    """
    by_column = [list(zip(paths, own, strict=True)) for own in zip(*facts, strict=True)]
    problems = [text for found in by_column for text in _find_problems(settings, found, rows)]
    *inputs, label = by_column
    names = _find_levels(label) if any(fact.kind == "category" for _, fact in label) else None
    problems += _find_label_problems(settings, names)
    if problems:
        raise DataError("\n".join(problems))
    if names is not None and settings.positive == names[0]:
        names = names[::-1]
    columns = [
        ColumnSchema(name=found[0][1].name, kind=agree_on_kind(f.kind for _, f in found), levels=_find_levels(found))
        for found in inputs
    ]
    return TableSchema(columns=tuple(columns), task=settings.task, label=settings.label, class_names=names)


Found = Sequence[tuple[str, ColumnFacts]]


def agree_on_kind(kinds: Iterable[str]) -> Kind:
    """Returns the kind of a column that has these kinds in its files. Booleans beside numbers are numbers."""
    found = set(kinds) - {"empty"}
    only: Mapping[str, Kind] = {"boolean": "boolean", "date": "date", "category": "category"}
    return only.get(found.pop(), "number") if len(found) == 1 else "number"


def has_too_many_levels(levels: int, rows: int) -> bool:
    """Returns whether a column of text has so many levels in so many training rows that it is hardly a category."""
    return levels > FEW_LEVELS and (levels > MOST_LEVELS or 2 * levels > rows)


def _find_levels(found: Found) -> tuple[str, ...]:
    return tuple(sorted(set().union(*(fact.levels for _, fact in found))))


def _find_problems(settings: TabularSettings, found: Found, rows: int) -> Iterator[str]:
    name = found[0][1].name
    groups = {"boolean": "number"}
    first = {groups.get(fact.kind, fact.kind): (path, fact) for path, fact in reversed(found) if fact.kind != "empty"}
    if len(first) > 1:
        texts = {"category": "text", "date": "a date", "number": "a number"}
        each = ", but ".join(
            f"{texts[kind]} in {path} ({fact.example})"
            for kind, (path, fact) in sorted(first.items(), key=lambda item: item[0] == "category")
        )
        kind = "category" if "category" in first else "date"
        yield f"column {name}: {each}; correct the values, or set data.types: {{{name}: {kind}}}"
        return
    levels = _find_levels(found)
    is_label, declared = name == settings.label, settings.types.get(name) == "category"
    if not declared and not is_label and has_too_many_levels(len(levels), rows):
        path, fact = first["category"]
        text = f"{len(levels)} different texts in {rows} training rows ({path}: {fact.example})"
        yield (
            f"column {name}: {text}; if it names rows, leave it out with data.exclude: [{name}]; if it is a date, "
            f"write it as 2020-01-31; if it is a category, set data.types: {{{name}: category}}"
        )
        return
    what = "class" if is_label else "level"
    for path, fact in found:
        for level, place in sorted(fact.test_places.items()):
            if level not in levels:
                remedy = "merge it with another, remove its rows, or change data.test_share"
                yield (
                    f"{path}, {place}, column {name}: the {what} {level!r} is only in test rows, so it would never be "
                    f"trained; {remedy}"
                )


def _find_label_problems(settings: TabularSettings, names: tuple[str, ...] | None) -> Iterator[str]:
    label, positive = settings.label, settings.positive
    if names is None:
        if positive is not None:
            yield f"data.positive: {positive!r}: the labels are numbers; class 1 is positive"
        return
    if len(names) < 2:
        yield f"column {label}: every training row has the label {names[0]!r}; at least two classes are needed"
    elif settings.task == "binary" and len(names) > 2:
        shown = ", ".join(names[:20])
        yield f"column {label}: {len(names)} classes ({shown}); task binary has two; set data.task: classification"
    if positive is not None and positive not in names:
        yield f"data.positive: {positive!r}: is no label; the labels are {', '.join(names[:20])}"
