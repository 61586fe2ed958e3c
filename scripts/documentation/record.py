"""Runs the commands in the console blocks of pages, and writes their output below them.

The commands of a page run in one new directory, into which its files (blocks with a title) are written, and which the
page calls /home/you/fednar_ray. Exit code 1 if a command fails, unless the page shows its exit code:
`$ command; echo "exit code $?"`.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from snippets import GAP, PROMPT, ROOT, Block, iter_blocks, list_pages

CALLED = "/home/you/fednar_ray"
BIN = Path(sys.executable).parent
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1"}
FORGOTTEN = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
TIMEOUT_SECONDS = 1800.0
ATTEMPTS, BUSY = 5, "timed out during startup"  # Ray gives its processes 30 seconds
TOKEN = secrets.token_hex(32)  # for the cluster that a note starts


def main() -> None:
    """Records the named pages, or all; for PAGE:LINE only the block with that line."""
    for argument in sys.argv[1:] or map(str, list_pages()):
        name, _, line = argument.partition(":")
        page = Path(name).resolve()
        consoles = [block for block in iter_blocks(page) if block.language == "console"]
        chosen = [block for block in consoles if not line or block.covers(int(line))]
        if line and not chosen:
            sys.exit(f"{argument}: no console block is there")
        if chosen:
            record(page, chosen)


def record(page: Path, consoles: list[Block]) -> None:
    """Runs one page's commands in order, and writes the page."""
    with tempfile.TemporaryDirectory(prefix="fednar", ignore_cleanup_errors=True) as directory:
        for block in iter_blocks(page):
            if block.title:
                path = Path(directory) / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text + "\n", encoding="utf-8")
        shutil.copytree(ROOT / "tune_configs", Path(directory) / "tune_configs")
        lines = page.read_text(encoding="utf-8").splitlines()
        outputs = {block.line: run(block, directory) for block in consoles}
    for block in reversed(consoles):
        start = block.line - 1
        lines[start : start + len(block.text.splitlines())] = outputs[block.line]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"recorded {page.relative_to(ROOT)}")


def run(block: Block, directory: str) -> list[str]:
    """Runs a block and returns its new lines: each command with its output."""
    environment = {name: value for name, value in os.environ.items() if name not in FORGOTTEN}
    environment |= {**QUIET, "PATH": f"{BIN}:{environment['PATH']}", "RAY_AUTH_TOKEN": TOKEN}
    shown: list[str] = []
    with run_meanwhile(block, directory, environment):
        for command, recorded in zip(block.commands, block.outputs, strict=True):
            print(f"{block.place}: {command}", file=sys.stderr)
            printed = run_command(command, directory, environment, block.place)
            shown += [PROMPT + command, *shorten(printed.rstrip().splitlines(), recorded)]
    return shown


def shorten(printed: list[str], recorded: list[str]) -> list[str]:
    """Leaves out the middle of an output as the recorded one does: with a line … between its first and last lines.

    A table among the last lines is shown from its first line.
    """
    if GAP not in recorded:
        return printed
    before = recorded.index(GAP)
    after = len(recorded) - before - 1
    start = len(printed) - after
    while after and start > before and not _ends_block(printed[start - 1]):
        start -= 1
    return printed if start <= before else [*printed[:before], GAP, *printed[start:]]


def _ends_block(line: str) -> bool:
    """Returns whether no table goes on after a line: it is empty, names a stage, or tells of a round."""
    return not line.strip() or line.endswith(GAP) or line.startswith("round ")


def run_command(command: str, directory: str, environment: Mapping[str, str], place: str) -> str:
    """Runs a command and returns its output. Exits if it fails. Retries if a busy machine kept Ray from starting."""
    for attempts_left in reversed(range(ATTEMPTS)):
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        if BUSY not in done.stdout or not attempts_left:
            break
    if done.returncode or BUSY in done.stdout:
        sys.exit(f"{place}: exit code {done.returncode}:\n{done.stdout}")
    return done.stdout.replace(directory, CALLED).replace(str(ROOT), CALLED)


@contextmanager
def run_meanwhile(block: Block, directory: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Runs the command of the block's note beside it, started the given number of seconds before."""
    if block.note is None or block.note[0] != "meanwhile":
        yield
        return
    seconds, _, command = block.note[1].partition(":")
    beside = subprocess.Popen(
        ["/bin/bash", "-c", f"exec {command.strip()}"],
        cwd=directory,
        env={**environment, "RAY_AUTH_MODE": "token"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        time.sleep(float(seconds))
        yield
    finally:
        os.killpg(beside.pid, signal.SIGTERM)
        beside.wait(60)


if __name__ == "__main__":
    main()
