"""Generates the page of the configuration from the models that validate it."""

from collections.abc import Iterator

from fednar_ray.config.describe import Key, Section, list_sections

RAISES = "\n\nRaises:"  # of a class, which is for programmers
INTRODUCTION = """# Configuration

An experiment file is YAML with an `experiment` section, and may have `compare` (read by `fednar compare`) and `search`
(read by `fednar tune`). On the command line `key=value` sets a key by its dotted name; a value is YAML. Keys that do
not start with `compare.` or `search.` belong to the experiment.

Unknown keys, values out of range and contradictions are refused before anything starts, all at once. Relative paths
become absolute when they are read. A key that is not given, or is `null`, takes its default.

Each example sets its key as arguments of a command would, after the other keys that it needs; in a file,
`regularizer.clip_bound=1.1` is `regularizer: {clip_bound: 1.1}` in the section `experiment`.

`fednar config` lists all keys, `fednar config regularizer.clip_bound` shows one, and `fednar config data.folder` shows
what one source reads.
"""


def build_configuration_page() -> str:
    """Returns the page in Markdown: one list of keys per section."""
    return "\n".join([INTRODUCTION, *(line for section in list_sections() for line in iter_section(section))])


def iter_section(section: Section) -> Iterator[str]:
    """Yields a section's keys, and those of its kinds if it has several."""
    yield f"## {section.name}\n"
    yield f"{format_text(section.meaning.partition(RAISES)[0])}\n"
    yield from map(describe_key, section.keys)
    for kind in section.kinds:
        named = " or ".join(f"`{given}`" for given in kind.given_by)
        yield f"{named}: {format_text(kind.meaning)}\n{{ .kind }}\n"
        yield from map(describe_key, kind.keys)


def describe_key(key: Key) -> str:
    """Returns the entry of one key: its meaning, then its values and default, then its example."""
    default = "must be given" if key.default is None else f"default `{key.default}`"
    lines = (format_text(key.meaning), f"*Values*: {key.values}; {default}", f"*Example*: `{key.example}`")
    return f"`{key.name}`\n:   " + "  \n    ".join(lines) + "\n"


def format_text(description: str) -> str:
    """Turns a docstring into one paragraph of Markdown."""
    return description.replace("``", "`").replace("\n\n", " ").replace("\n", " ")
