"""Generates the page of commands from what each one's --help prints."""

from collections.abc import Iterator

import click
from click.testing import CliRunner

from fednar_ray.cli.main import cli

INTRODUCTION = """# Commands

Exit codes: 0 done, 1 failure, 2 bad input, 130 interrupted, 143 terminated. `--json` prints one object for programs;
all other messages go to standard error. Your own functions (`algorithm.function`, `model.function`,
`data.entry_point`) are found in the working directory, and wherever Python finds modules.
"""


def build_commands_page() -> str:
    """Returns the page in Markdown: a heading and the help of every command."""
    parts = [INTRODUCTION]
    for path in (["fednar"], *iter_paths(cli, ["fednar"])):
        printed = CliRunner().invoke(cli, [*path[1:], "--help"], prog_name="fednar", terminal_width=100)
        parts += [f"## {' '.join(path)}\n"] if path[1:] else []
        parts.append(f"```text\n$ {' '.join(path)} --help\n{printed.output.rstrip()}\n```\n")
    return "\n".join(parts)


def iter_paths(group: click.Group, prefix: list[str]) -> Iterator[list[str]]:
    """Yields the words of every command, a group before its commands."""
    for name, command in group.commands.items():
        yield [*prefix, name]
        if isinstance(command, click.Group):
            yield from iter_paths(command, [*prefix, name])
