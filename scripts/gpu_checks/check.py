"""Checks and measures fednar_ray on one device, within a time. Run by scripts/gpu_check; imports only what Python has.

Each part is a process of its own with a time limit, so that neither an error of a device nor a slow compiler takes the
results of the others along.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_checks import packages
from gpu_checks.page import build_page

ROOT = Path(__file__).resolve().parents[2]
LEAST_SECONDS = 20.0  # a part with less is not started: torch and CUDA alone take ten
SECONDS = {
    "tests": 70, "resume": 40, "peak": 20, "W1": 75, "packs": 40, "large": 95, "costs": 50, "W2": 35, "W4": 35,
    "jax": 20,
}  # fmt: skip
"""The parts in their order, and the share of the time that each gets; what one leaves, the next ones get."""
PARTS = tuple(SECONDS)
NAMED = ("torch", "numpy", "ray", "mlflow", "jax", "triton")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts and writes the results. Returns the exit code: 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT") or ROOT / ".bench" / "gpu"))
    parser.add_argument("--pack", action="store_true")
    options = parser.parse_args(arguments)
    if options.pack:
        packages.pack()
        return 0
    until = time.monotonic() + 60 * options.minutes
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": describe(options.device), "parts": {}}
    if (problem := find_problem(options, results["machine"])) is not None:
        print(problem, file=sys.stderr)
        return 2
    only = {*options.only, *(("tests",) if "resume" in options.only else ())}  # which leaves the runs that are resumed
    waiting = [part for part in PARTS if part in only]
    with tempfile.TemporaryDirectory() as directory:
        while waiting:
            part = waiting.pop(0)
            left = until - time.monotonic()
            results["parts"][part] = run_part(part, options, share(part, waiting, left), Path(directory))
            write(results, options.output)
    print(f"written: {options.output / 'gpu_check.md'}, {options.output / 'gpu_check.json'}")
    return int(has_failed(results))


def share(part: str, waiting: Sequence[str], left: float) -> float:
    """Returns the seconds that a part gets of those that are left: its own, and what the later ones do not need."""
    return min(left, max(SECONDS[part], left - sum(SECONDS[each] for each in waiting)))


def find_problem(options: argparse.Namespace, machine: dict[str, Any]) -> str | None:
    """Returns why nothing can be measured here, and what would help."""
    if "torch" not in machine["versions"]:
        return "torch is missing; install torch 2.6 or newer, or name another interpreter: PYTHON=python3.12"
    missing = packages.provide(options.output / "site")
    machine["missing"] = missing
    if missing:
        names = ", ".join(missing)
        return f"missing: {names}; install them, or put them into .bench/wheels elsewhere: scripts/gpu_check --pack"
    if options.device == "cuda" and "gpu" not in machine:
        return "torch sees no GPU; to try the check on this CPU with tiny sizes: scripts/gpu_check --device cpu"
    return None


def describe(device: str) -> dict[str, Any]:
    """Describes the machine: versions, the GPU, and what is missing that a part would use."""
    versions = {name: metadata.version(name) for name in NAMED if find_spec(name) is not None and _is_installed(name)}
    found: dict[str, Any] = {"python": sys.version.split()[0], "versions": versions, "cores": os.cpu_count()}
    found["date"], found["device"] = time.strftime("%Y-%m-%d %H:%M"), device
    found["compiler"] = shutil.which(os.environ.get("CXX", "g++")) is not None
    if device == "cuda" and "torch" in versions:
        found |= _describe_gpu()
    return found


def _is_installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _describe_gpu() -> dict[str, Any]:
    """Asks torch in another process, so that this one holds no memory of the GPU."""
    code = (
        "import json, torch\n"
        "p = torch.cuda.get_device_properties(0)\n"
        "print(json.dumps({'gpu': p.name, 'capability': [p.major, p.minor], 'gpu_gigabytes': p.total_memory / 1e9,"
        " 'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def run_part(part: str, options: argparse.Namespace, seconds: float, directory: Path) -> dict[str, Any]:
    """Runs a part, and returns its rows; those that it had printed when it failed or its time was over."""
    if seconds < LEAST_SECONDS:
        return _say(part, {"rows": [], "skipped": f"{max(seconds, 0):.0f} s were left, {LEAST_SECONDS:.0f} are needed"})
    path = [str(options.output / "site"), *(str(ROOT / each) for each in ("", "scripts", "scripts/benchmarks"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])}
    environment |= {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "gpu_checks.part", part, "--device", options.device, "--directory", str(directory)]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [*command, "--seconds", str(seconds - 5)],
            stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        out.seek(0)
        text = out.read()
    rows = [json.loads(line[4:]) for line in text.splitlines() if line.startswith("ROW ")]
    found: dict[str, Any] = {"rows": rows, "seconds": time.monotonic() - start}
    if code == -signal.SIGKILL:
        found["failed"] = f"its time was over after {seconds:.0f} s"
    elif code:
        found["failed"] = "\n".join(line for line in text.splitlines() if not line.startswith("ROW "))[-2000:]
    return _say(part, found)


def _say(part: str, found: dict[str, Any]) -> dict[str, Any]:
    """Prints what became of a part."""
    problem = found.get("skipped") or found.get("failed", "").strip().rpartition("\n")[2]
    text = f"{part}: {found.get('seconds', 0):.0f} s, {len(found['rows'])} rows"
    print(f"{text}; {problem}" if problem else text, flush=True)
    for row in found["rows"]:
        if row.get("passed") is False:
            print(f"  FAILED {row['test']} {row.get('found', '')}", flush=True)
    return found


def has_failed(results: dict[str, Any]) -> bool:
    """Returns whether a test failed, or a part or a system broke."""
    parts = results["parts"].values()
    rows = [row for part in parts for row in part["rows"]]
    return any("failed" in part for part in parts) or any(r.get("passed") is False or "failed" in r for r in rows)


def write(results: dict[str, Any], output: Path) -> None:
    """Writes what is known so far."""
    (output / "gpu_check.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (output / "gpu_check.md").write_text(build_page(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
