"""Executes the notebooks of the documentation, and shows them as pages.

`scripts/docs notebooks` executes each in a new directory, and writes its outputs into it.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from snippets import DOCS

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
FORGOTTEN = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
TIMEOUT_SECONDS = 600
SHOWN = ("text/html", "image/svg+xml", "image/png", "text/plain")  # the first one that an output has


def list_notebooks() -> list[Path]:
    """Returns the notebooks of the documentation."""
    return sorted(DOCS.glob("notebooks/*.ipynb"))


def execute(path: Path, directory: str) -> Any:
    """Executes a notebook in a directory, and returns it with its outputs. Raises an error if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    environment = {name: value for name, value in os.environ.items() if name not in FORGOTTEN}
    client = NotebookClient(notebook, timeout=TIMEOUT_SECONDS, resources={"metadata": {"path": directory}})
    client.execute(env={**environment, **QUIET})
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = {}
    return notebook


def render(path: Path) -> str:
    """Returns a notebook as a page in Markdown, with a link to its file."""
    notebook = nbformat.read(path, as_version=4)
    parts = [part for cell in notebook.cells for part in _render_cell(cell)]
    title, *rest = parts
    return "\n\n".join([title, f"This page is a notebook: [{path.name}]({path.name}).", *rest]) + "\n"


def _render_cell(cell: Any) -> Iterator[str]:
    if cell.cell_type == "markdown":
        yield cell.source
        return
    yield f"```python\n{cell.source}\n```"
    for output in cell.outputs:
        if output.output_type == "stream":
            yield _render_text(output.text)
            continue
        kind = next(kind for kind in SHOWN if kind in output.data)
        content = output.data[kind]
        if kind == "image/png":
            yield f'<img alt="Output of the cell" src="data:image/png;base64,{content.strip()}">'
        elif kind == "text/plain":
            yield _render_text(content)
        else:
            yield content.strip()


def _render_text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def main() -> None:
    """Executes the named notebooks, or all, and writes their outputs."""
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else list_notebooks():
        with tempfile.TemporaryDirectory(prefix="fednar", ignore_cleanup_errors=True) as directory:
            notebook = execute(path, directory)
        nbformat.write(notebook, path)
        print(f"executed {path}")


if __name__ == "__main__":
    main()
