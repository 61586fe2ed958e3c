"""Finds texts that differ only in capitals and blanks, and so are probably meant as one."""

from collections.abc import Iterable, Mapping


def find_alike(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups texts that differ only in capitals and blanks, such as Sick and sick; others are left out."""
    groups: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        groups.setdefault("".join(text.split()).casefold(), []).append(text)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def describe_alike(name: str, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Describes the levels of a column that are probably meant as one.

    Args:
        name: The column.
        counts: Level → its number of rows by client; no clients where that is not known.

    Returns:
        One line per group of such levels.
    """
    return [
        f"column {name}: {' and '.join(_describe(level, counts[level]) for level in group)} differ only in capitals or "
        "blanks; if they mean the same, write them alike"
        for group in find_alike(counts)
    ]


def _describe(level: str, rows: Mapping[str, int]) -> str:
    where = ", ".join(f"{count} row{'s' * (count != 1)} of {client}" for client, count in rows.items() if count)
    return f"{level!r} ({where})" if where else repr(level)
