"""Helpers of the scripts that measure: the machine's name, tables, and parts of pages that a script writes."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def describe_machine() -> str:
    """Returns processor, memory, system and Python version in one phrase."""
    import psutil  # here, since scripts/gpu_check writes its table where there may be nothing but torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores ({cpu}), {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"


def build_table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---") -> str:
    """Returns a Markdown table. ``align`` is the rule of all columns but the first: ``---:`` aligns to the right."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join((lines[0], "|---" + f"|{align}" * (len(head) - 1) + "|", *lines[1:]))


def write_part(page: Path, part: str, script: str, text: str) -> None:
    """Replaces the text between ``<!-- PART: written by SCRIPT -->`` and ``<!-- end of PART -->`` on a page."""
    begin, end = f"<!-- {part}: written by {script} -->", f"<!-- end of {part} -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")
