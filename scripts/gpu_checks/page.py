"""Writes the results of a check as Markdown. Imports only what Python has."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pages import build_table

Row = Mapping[str, Any]
TITLES = {
    "tests": "Results",
    "resume": "Results after a resume",
    "peak": "The rate of a large matrix product",
    "costs": "The cost of a local step",
    "jax": "W1 as a JAX script",
}
HEAD = ("system", "C", "round (ms)", "time relative to the first row", "GFLOP/s", "share of the peak",
        "peak memory (MB)", "GPU busy", "first round (s)")  # fmt: skip


def build_page(results: Mapping[str, Any]) -> str:
    """Returns the page: the machine, what was skipped, and a section per part."""
    peaks = {row["precision"]: row["gflops"] for row in _get_rows(results, "peak") if "gflops" in row}
    sections = [f"# {describe_machine(results['machine'])}", *list_skipped(results)]
    for part, found in results["parts"].items():
        body = "\n\n".join(build_body(part, found["rows"], peaks))
        problem = found.get("skipped") or (f"It failed:\n\n    {found['failed']}" if "failed" in found else "")
        title = next((row["title"] for row in found["rows"] if "title" in row), TITLES.get(part, part))
        heading = title if part in TITLES else f"{part}: {title}"
        sections.append("\n\n".join(filter(None, (f"## {heading}", problem, body))))
    return "\n\n".join(sections) + "\n"


def _get_rows(results: Mapping[str, Any], part: str) -> Sequence[Row]:
    rows: Sequence[Row] = results["parts"].get(part, {"rows": []})["rows"]
    return rows


def describe_machine(machine: Mapping[str, Any]) -> str:
    """Returns the device and the versions in one line."""
    device = "CPU, tiny sizes: these figures say nothing about speed"
    if "gpu" in machine:
        device = f"{machine['gpu']} ({machine['gpu_gigabytes']:.0f} GB), CUDA {machine['cuda']}"
    return f"{device}; torch {machine['versions']['torch']}, Python {machine['python']}, {machine['date']}"


def list_skipped(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields a list of what was left out, and why."""
    machine = results["machine"]
    lines = [f"{part}: {found['skipped']}" for part, found in results["parts"].items() if "skipped" in found]
    for part, found in results["parts"].items():
        lines += [
            f"{part}: {row.get('system', '')}: {row['skipped']}".replace(": : ", ": ")
            for row in found["rows"] if "skipped" in row
        ]  # fmt: skip
    for name in ("ray", "mlflow"):
        lines.append(f"{name}: not used ({'installed' if name in machine['versions'] else 'not installed'})")
    if not machine["compiler"]:
        lines.append("no C++ compiler was found")
    yield "Left out:\n\n" + "\n".join(f"- {line}" for line in lines)


def build_body(part: str, rows: Sequence[Row], peaks: Mapping[str, float]) -> Iterator[str]:
    """Yields the tables and texts of a part."""
    if part in ("tests", "resume"):
        words = {True: "passed", False: "**failed**", None: "–"}
        yield build_table(
            ("test", "", "found"), [(row["test"], words[row["passed"]], row.get("found", "")) for row in rows]
        )
    elif part == "peak":
        yield build_table(("precision", "GFLOP/s"), [(r["precision"], f"{r['gflops']:,.0f}") for r in rows], "---:")
    elif part == "costs":
        yield from build_costs(rows)
    elif part == "jax":
        if cells := [*list_jax(rows)]:
            yield build_table(("system", "round (ms)", "device"), cells, "---:")
    else:
        yield build_table(HEAD, [*list_systems(rows, peaks)], "---:")


def list_systems(rows: Sequence[Row], peaks: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    """Yields the cells of each system that was measured."""
    gflop = next((row["gflop"] for row in rows if "gflop" in row), 0.0)
    measured = [row for row in rows if "round_seconds" in row]
    for row in rows:
        if "failed" in row:
            yield (row["system"], *[""] * (len(HEAD) - 2), row["failed"].replace("|", "/"))
        elif row in measured:
            rate = gflop / row["round_seconds"]
            peak = peaks.get(row["precision"])
            yield (
                row["system"],
                str(row["group"]),
                f"{1e3 * row['round_seconds']:.2f}",
                f"{row['round_seconds'] / measured[0]['round_seconds']:.2f}",
                f"{rate:,.0f}",
                f"{100 * rate / peak:.1f} %" if peak else "–",
                f"{row['peak_megabytes']:,.0f}" if "peak_megabytes" in row else "–",
                f"{row['utilization']:.0f} %" if "utilization" in row else "–",
                f"{row['first']:.2f}",
            )


def list_jax(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Yields the cells of the JAX script's runs."""
    for row in rows:
        if "result" in row:
            result = json.loads(row["result"])
            seconds = sorted(result["round_seconds"])
            yield row["system"], f"{1e3 * seconds[len(seconds) // 2]:.2f}", result["device"]
        elif "failed" in row:
            yield row["system"], "", row["failed"].replace("|", "/")


def build_costs(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the costs that fit, as they are pasted into federated/vectorization.py, and the steps."""
    for row in rows:
        if "fitted" in row:
            least, median, most = row["ratios"]
            text = f"They predict {least:.2f} to {most:.2f} times the measured seconds (median {median:.2f})."
            note = "The costs that fit, for `fednar_ray/federated/vectorization.py`:"
            yield f"{note}\n\n```python\n{row['fitted']}\n```\n\n{text}"
    cells = []
    for row in (each for each in rows if "seconds" in each):
        numbers = (f"{1e3 * row[key]:.3f}" for key in ("seconds", "predicted"))
        cells.append((row["model"], str(row["batch"]), str(row["group"]), *numbers))
    yield build_table(("model", "batch", "C", "step (ms)", "predicted by the costs in use"), cells, "---:")
