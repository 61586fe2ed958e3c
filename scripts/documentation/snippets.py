"""The blocks of code on a page, and the purpose of each kind.

```python                     runs, after the page's blocks above it
```python title="rules.py"    is a file that the page's other blocks and commands find
```yaml title="mine.yaml"     the same
```console                    commands behind a $ and their output, written by `scripts/docs record`
```sh                         commands that are not run here: they need other hardware or software, or do not end
```mermaid                    a drawing, rendered by `scripts/docs draw`
[scripts/examples/…](…)       as a line of its own: that program, shown; tests/end_to_end/test_examples.py runs it
…                             as a line of a long output: `scripts/docs record` leaves out the middle, and writes as
                              many lines before and after it as it finds
<!-- not run: why -->         on the line above a block: its syntax is checked, it is not run
<!-- meanwhile: 40: command -->   above a console block: a command that runs beside it, started 40 s before
<!-- again: in tests -->      above a console block: its output is the same everywhere, so the tests run it again
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(?P<language>\w*)(?: +title=\"(?P<title>[^\"]+)\")? *$")
NOTE = re.compile(r"<!-- (?P<kind>not run|meanwhile|again): (?P<text>(?:(?!-->).)+) -->\Z", re.DOTALL)
PROMPT = "$ "
GAP = "…"


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a page."""

    page: Path
    line: int  # of its first line of text, from 1
    language: str  # empty for an indented block or a fence without a language
    title: str | None
    note: tuple[str, str] | None  # kind and text of the note above it
    text: str

    @property
    def place(self) -> str:
        """The block's file and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def covers(self, line: int) -> bool:
        """Returns whether a line of the page belongs to the block."""
        return self.line <= line < self.line + len(self.text.splitlines())

    @property
    def commands(self) -> list[str]:
        """The commands: the lines behind the prompt of a console, or else all lines; without trailing comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix(PROMPT) for line in lines if line.startswith(PROMPT)]
        typed = (re.sub(r"(^|\s+)#(\s.*)?$", "", line).strip() for line in lines)
        return [line for line in typed if line]

    @property
    def outputs(self) -> list[list[str]]:
        """The lines below each command of a console block that is on one line."""
        outputs: list[list[str]] = []
        for line in self.text.splitlines():
            if line.startswith(PROMPT):
                outputs.append([])
            elif outputs:
                outputs[-1].append(line)
        return outputs


def list_pages() -> list[Path]:
    """Returns the pages of the documentation and those at the top of the repository."""
    return [*sorted(DOCS.rglob("*.md")), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG"))]


def iter_blocks(page: Path) -> Iterator[Block]:
    """Yields the blocks of a page, fenced or indented, from top to bottom."""
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence:
            end = next((i for i in range(at + 1, len(lines)) if lines[i] == "```"), len(lines))
            text, found = "\n".join(lines[at + 1 : end]), fence.groupdict()
            yield Block(page, at + 2, found["language"], found["title"], _parse_note(lines, at), text)
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = next((i for i in range(at, len(lines)) if lines[i].strip() and lines[i][0] != " "), len(lines))
            text = "\n".join(line[4:] for line in lines[at:end]).rstrip()
            yield Block(page, at + 1, "", None, _parse_note(lines, at), text)
            at = end
        else:
            at += 1


def _parse_note(lines: list[str], at: int) -> tuple[str, str] | None:
    found = NOTE.search("\n".join(lines[:at]).rstrip())
    return (found["kind"], found["text"].replace("\\\n", "")) if found else None
