"""Generates the page of the configuration from the models that validate it."""

from collections.abc import Iterator, Sequence

from fednar_ray.config.describe import Key, Section, list_sections

INTRODUCTION = """# Configuration

An experiment file is YAML with an `experiment` section, and may have `compare` (read by `fednar compare`) and `search`
(read by `fednar tune`). On the command line `key=value` sets a key by its dotted name, as in the tables below; a value
is YAML. Keys that do not start with `compare.` or `search.` belong to the experiment: `regularizer.clip_bound=5`.

Unknown keys, values out of range and contradictions are refused before anything starts, all at once. Relative paths
become absolute when they are read. A key that is not given, or is `null`, takes its default.

`fednar config` prints these tables, `fednar config regularizer.clip_bound` one key, and `fednar config data.folder`
what one source reads.
"""


def build_configuration_page() -> str:
    """Returns the page in Markdown: one table per section."""
    return "\n".join([INTRODUCTION, *(line for section in list_sections() for line in iter_section(section))])


def iter_section(section: Section) -> Iterator[str]:
    """Yields a section's keys, and those of its kinds if it has several."""
    yield f"## {section.name}\n"
    yield f"{format_text(section.meaning)}\n"
    yield from iter_table(section.keys)
    for kind in section.kinds:
        named = " or ".join(f"`{given}`" for given in kind.given_by)
        yield f"{named}: {format_text(kind.meaning)}\n"
        yield from iter_table(kind.keys)


def iter_table(keys: Sequence[Key]) -> Iterator[str]:
    """Yields a table of keys."""
    if keys:
        yield "| key | values | default | |\n|---|---|---|---|"
        yield from (*(build_row(key) for key in keys), "")


def build_row(key: Key) -> str:
    """Returns the row of one key."""
    default = "must be given" if key.default is None else f"`{key.default}`"
    return f"| `{key.name}` | {key.values} | {default} | {format_text(key.meaning)} |"


def format_text(description: str) -> str:
    """Turns a docstring into Markdown for a table."""
    return description.replace("``", "`").replace("|", "\\|").replace("\n\n", "<br>").replace("\n", " ")
