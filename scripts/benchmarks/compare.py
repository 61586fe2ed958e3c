"""Runs all systems on the same workloads and writes the tables of docs/performance.md.

Run by scripts/bench. Every repetition runs each system of a table once, so that a ratio compares runs made side by
side. Ratios are taken within a repetition, and their median is shown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pages import DOCS, ROOT, build_table, describe_machine, write_part

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = DOCS / "performance.json", DOCS / "performance.md"
SAMPLE_SECONDS = 0.1
WORKERS = 2  # actors, processes or threads of each system


@dataclass(frozen=True)
class Peer:
    """A separate environment, created when it is first needed."""

    name: str
    requirements: tuple[str, ...]

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return ROOT / ".bench" / self.name / "bin" / "python"

    def install(self) -> None:
        """Installs it, unless these very requirements are installed."""
        stamp = self.python.parents[1] / "installed"
        if stamp.exists() and stamp.read_text().split() == list(self.requirements):
            return
        print(f"installing {' '.join(self.requirements)} into {stamp.parent.relative_to(ROOT)} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", stamp.parent], check=True)
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.requirements]
        subprocess.run(pip, check=True)
        stamp.write_text("\n".join(self.requirements))


FLWR = Peer("flwr", ("flwr[simulation]==1.41.*", "torch"))
PFL = Peer("pfl", ("pfl[pytorch]==0.6.*", "torch"))
JAX = Peer("jax", ("jax>=0.4.30",))


@dataclass(frozen=True)
class System:
    """One row of a table: a script with its arguments, and the peer whose environment runs it."""

    label: str
    arguments: tuple[str, ...]
    peer: Peer | None = None

    @classmethod
    def ours(cls, label: str, *options: str) -> "System":
        """Returns fednar_ray with some options."""
        return cls(label, (str(HERE / "ours.py"), *options))

    @property
    def command(self) -> tuple[str, ...]:
        """The command line. The peer is installed if it is missing."""
        if self.peer is not None:
            self.peer.install()
        return (sys.executable if self.peer is None else str(self.peer.python), *self.arguments)


PLAIN = System("plain loop, 1 process", (str(HERE / "baselines.py"), "plain"))
VMAPPED = System("vmap, 1 process", (str(HERE / "baselines.py"), "vmapped"))
BARE = System("2 bare processes (the limit)", (str(HERE / "baselines.py"), "bare"))
FLOWER = System("Flower, Ray simulation", (str(HERE / "flower.py"),), FLWR)
PFL_ONE = System("pfl-research, 1 process", (str(HERE / "pfl_research.py"),), PFL)
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=static", "--master_addr=127.0.0.1")
PFL_TWO = System("pfl-research, 2 processes", (*TORCHRUN, "--master_port=29517", str(HERE / "pfl_research.py")), PFL)
OURS = System.ours("fednar_ray")
COMPILED = System.ours("fednar_ray, compiled", "--compile", "on")
JAX_PLAIN = System("JAX script, 1 process", (str(HERE / "jax_peer.py"), "--workload", "mlp"), JAX)
JAX_CLIPPED = System("JAX script with co-clipping", (*JAX_PLAIN.arguments, "--clip-bound", "10"), JAX)


@dataclass(frozen=True)
class Table:
    """Systems on one workload. Ratios refer to the first row."""

    title: str
    systems: tuple[System, ...]
    options: tuple[str, ...]
    columns: tuple[str, ...] = ("round", "ratio", "clients")


TABLES = {
    "W1": Table(
        "MLP 64-128-10 on digits: 100 clients, 20 sampled, 20 steps of 32, plain SGD",
        (
            OURS,
            COMPILED,
            System.ours("fednar_ray, compiled, FedNAR", "--compile", "on", "--regularizer", "fednar"),
            JAX_PLAIN,
            JAX_CLIPPED,
            FLOWER,
            PFL_ONE,
            PFL_TWO,
            PLAIN,
            VMAPPED,
            System.ours("fednar_ray, FedNAR", "--regularizer", "fednar"),
            System.ours("fednar_ray, SCAFFOLD", "--algorithm", "scaffold"),
            System.ours("fednar_ray, one by one (C = 1)", "--vectorize", "1"),
        ),
        ("--workload", "mlp", "--rounds", "40"),
        ("round", "ratio", "clients", "share", "start", "memory"),
    ),
    "W2": Table(
        "LeNet on CIFAR-10: 100 clients, 20 sampled, 10 steps of 50, plain SGD",
        (BARE, OURS, COMPILED, System.ours("fednar_ray, FedNAR", "--regularizer", "fednar"), FLOWER, PFL_TWO, PLAIN),
        ("--workload", "lenet", "--rounds", "6"),
        ("round", "ratio", "clients", "share", "start", "memory"),
    ),
    "W3": Table(
        "MLP 64-128-10, 100 sampled of many clients of 10 examples, 20 steps",
        tuple(
            System.ours(f"{algorithm}, {clients:,} clients", "--algorithm", algorithm, "--clients", str(clients))
            for algorithm in ("fedavg", "scaffold")
            for clients in (1_000, 100_000)
        ),
        ("--rounds", "40"),
        ("round", "ratio", "start", "own"),
    ),
    "W4": Table(
        "ResNet-18 with GroupNorm (11.2 million parameters): 20 sampled, 1 step of 2",
        (
            BARE,
            OURS,
            System.ours("fednar_ray, FedNAR", "--regularizer", "fednar"),
            System.ours("fednar_ray, SCAFFOLD", "--algorithm", "scaffold"),
        ),
        ("--workload", "resnet", "--rounds", "8"),
        ("round", "ratio", "rest", "memory"),
    ),
}

PARTS = (*TABLES, "check", "start", "search", "profile", "widths")
SCRIPTS = {"search": "searches.py", "profile": "profile_round.py", "widths": "widths.py"}

HEADINGS = {
    "round": ("round (ms)", "min", "max"),
    "ratio": ("time relative to the first row",),
    "clients": ("clients/s",),
    "share": ("share of the machine's peak",),
    "start": ("first round after (s)",),
    "rest": ("round less the actors' compute (ms)",),
    "own": ("driver's own memory grew by (MB)",),
    "memory": ("peak memory, all processes (MB)",),
}


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts alone")
    parser.add_argument("--cifar", type=Path, help="cifar10.npz (train_x, train_y); without it random images")
    options = parser.parse_args()
    if options.cifar and not options.cifar.is_file():
        parser.error(f"--cifar: there is no file {options.cifar}")
    parts = options.only or PARTS
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parts:
        print(f"== {part}", flush=True)
        results[part] = {"machine": describe_machine(), "date": time.strftime("%Y-%m-%d"), **measure(part, options)}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        body = "\n\n".join(build_section(each, results[each]) for each in PARTS if each in results)
        write_part(PAGE, "tables", "scripts/bench", body)
    print(f"written: {RESULTS.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one part."""
    if part == "check":
        return {"distances": measure_distances()}
    if part == "start":
        return {"seconds": [measure_first_round() for _ in range(options.repetitions)]}
    if part == "search":
        return {"rows": [row for _ in range(options.repetitions) for row in run_for_rows(SCRIPTS[part])]}
    if part in SCRIPTS:
        return {"rows": run_for_rows(SCRIPTS[part])}
    table, extra = TABLES[part], ("--cifar", str(options.cifar.resolve())) if options.cifar and part == "W2" else ()
    runs: dict[str, list[dict[str, Any]]] = {system.label: [] for system in table.systems}
    for repetition in range(options.repetitions):
        for system in table.systems:
            result = run(system, (*table.options, *extra))
            runs[system.label].append(result)
            milliseconds = 1e3 * statistics.median(result["round_seconds"])
            print(f"{repetition + 1}/{options.repetitions}  {milliseconds:9.1f} ms  {system.label}", flush=True)
    memory = {}
    if "memory" in table.columns:  # in separate runs, since watching costs time
        for system in table.systems:
            memory[system.label] = run(system, (*table.options, *extra), watch=True)["peak_megabytes"]
    peak = {}
    if "share" in table.columns:
        (peak,) = run_for_rows("peak.py", "--threads", str(WORKERS), *table.options[:2])
    return {"runs": runs, "memory": memory, "peak": peak, "images": "CIFAR-10" if extra else "random"}


def run(system: System, options: Sequence[str], *, watch: bool = False) -> dict[str, Any]:
    """Runs a system and returns what it reports; with ``watch`` also its peak memory."""
    environment = os.environ | {"BENCH_STARTED": str(time.time()), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(HERE)}
    with (
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile("w+") as out,
        subprocess.Popen(
            [*system.command, *options], cwd=directory, env=environment, stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        peak = Peak(process.pid) if watch else None
        code = process.wait()
        if peak is not None:
            peak.end()
        out.seek(0)
        text = out.read()
    lines = [line for line in text.splitlines() if line.startswith("RESULT ")]
    if code or len(lines) != 1:
        raise SystemExit(f"{system.label} failed with exit code {code}:\n{text[-3000:]}")
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result | ({"peak_megabytes": peak.megabytes} if peak else {})


class Peak(threading.Thread):
    """Measures the peak memory of a process and its descendants. Shared pages are counted once (PSS)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root, self._over = psutil.Process(pid), threading.Event()
        self.megabytes = 0.0
        self.start()

    def run(self) -> None:
        """Samples until ``end`` is called."""
        while not self._over.wait(SAMPLE_SECONDS):
            self.megabytes = max(self.megabytes, sum(self._held()) / 1e6)

    def _held(self) -> Iterator[int]:
        try:
            for process in (self._root, *self._root.children(recursive=True)):
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                yield from (1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (psutil.Error, OSError):
            return  # a process ended meanwhile

    def end(self) -> None:
        """Stops sampling."""
        self._over.set()
        self.join()


def measure_distances() -> dict[str, float]:
    """Returns the largest difference of a final parameter from the plain loop's, by system. All clients are sampled."""
    systems = (
        PLAIN,
        VMAPPED,
        FLOWER,
        PFL_ONE,
        PFL_TWO,
        OURS,
        System.ours("fednar_ray, serial", "--placement", "serial"),
    )
    final = {}
    with tempfile.TemporaryDirectory() as directory:
        for index, system in enumerate(systems):
            path = Path(directory) / f"{index}.npy"
            run(system, ("--workload", "check", "--rounds", "4", "--parameters", str(path)))
            final[system.label] = np.load(path)
    plain = final[PLAIN.label]
    found = {label: float(np.abs(vector - plain).max()) for label, vector in final.items()}
    for label, distance in found.items():
        print(f"{distance:.1e}  {label}", flush=True)
    wrong = [label for label, distance in found.items() if not distance < 1e-4]
    if wrong:
        raise SystemExit(f"not the same work: {', '.join(wrong)}")
    return found


def measure_first_round() -> float:
    """Measures the seconds from the start of ``fednar run`` to the end of its first round."""
    command = [str(Path(sys.executable).parent / "fednar"), "run", "federation.rounds=10"]
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"round 1/"):
                seconds = time.perf_counter() - start
                break
        process.communicate()
    print(f"{seconds:.1f} s", flush=True)
    return seconds


def run_for_rows(script: str, *options: str) -> list[dict[str, Any]]:
    """Runs a script and returns the rows that it prints."""
    command = [sys.executable, str(HERE / script), *options]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for line in out.splitlines() if line.startswith("ROW ")]
    print("\n".join(lines), flush=True)
    return [json.loads(line.removeprefix("ROW ")) for line in lines]


def build_section(part: str, results: dict[str, Any]) -> str:
    """Returns a part as Markdown: heading, note, and its tables."""
    note = f"{results['date']}, {results['machine']}; `scripts/bench --only {part}`"
    heading, body = BODIES[part](results) if part in BODIES else build_system_table(part, results)
    return f"### {heading}\n\n{note}\n\n{body}"


def build_system_table(part: str, results: dict[str, Any]) -> tuple[str, str]:
    """Builds the tables of W1 to W4, with one row per system."""
    table = TABLES[part]
    images = f" ({results['images']} images)" if part == "W2" else ""
    head = ["system", *(heading for column in table.columns for heading in HEADINGS[column])]
    rows = [
        [system.label, *(cell for column in table.columns for cell in build_cells(column, part, results, system))]
        for system in table.systems
        if system.label in results["runs"]  # a system may be newer than the results
    ]
    body = build_table(head, rows, "---:")
    if peak := results.get("peak"):
        body += (
            f"\n\nA round takes {peak['round_gflop']:.2f} GFLOP. The machine's peak is the rate of a large matrix "
            f"product on the same {WORKERS} cores: {peak['gflops']:.0f} GFLOP/s."
        )
    return f"{part}: {table.title}{images}", body


def build_check_body(results: dict[str, Any]) -> tuple[str, str]:
    """Builds the table of the distances of each system's final parameters from those of the plain loop."""
    rows = [(label, f"{distance:.1e}") for label, distance in results["distances"].items()]
    head = ("system", "largest difference of a parameter to the plain loop's")
    return "The same work: final parameters when everyone is sampled", build_table(head, rows, "---:")


def build_start_body(results: dict[str, Any]) -> tuple[str, str]:
    """Builds the text on the time until the first round ends."""
    seconds = results["seconds"]
    text = f"{statistics.median(seconds):.1f} s (median; {min(seconds):.1f} to {max(seconds):.1f})"
    return "Start: `fednar run` to the end of the first round", text


def build_cells(column: str, part: str, results: dict[str, Any], system: System) -> list[str]:
    """Returns the cells of one system in one column."""
    runs = results["runs"][system.label]
    medians = [statistics.median(run["round_seconds"]) for run in runs]
    if column == "round":
        return [f"{1e3 * value:.1f}" for value in (statistics.median(medians), min(medians), max(medians))]
    if column == "ratio":
        first = [statistics.median(r["round_seconds"]) for r in results["runs"][TABLES[part].systems[0].label]]
        return [f"{statistics.median(m / f for m, f in zip(medians, first, strict=True)):.2f}"]
    if column == "clients":
        return [f"{20 / statistics.median(medians):,.0f}"]
    if column == "share":
        peak = results.get("peak")
        return [f"{100 * peak['round_gflop'] / statistics.median(medians) / peak['gflops']:.0f} %" if peak else "–"]
    if column == "start":
        return [f"{statistics.median(run['first_round_after'] for run in runs):.1f}"]
    if column == "own":
        return [f"{statistics.median(run['own_megabytes'] for run in runs):.0f}"]
    if column == "memory":
        return [f"{results['memory'][system.label]:.0f}"]
    rest = [
        statistics.median(np.subtract(run["round_seconds"], run["compute_seconds"]))
        for run in runs
        if "compute_seconds" in run
    ]
    return [f"{1e3 * statistics.median(rest):.0f}" if rest else "–"]


def build_search_body(results: dict[str, Any]) -> tuple[str, str]:
    """Builds the table of a search in packs and without them, with one column per repetition."""
    rows = results["rows"]
    lines = [("32 empty trials with bare Tune, from the start of Ray", *(f"{row['empty']:.1f}" for row in rows))]
    what = {
        "trials": "the trials' own work, divided by the cores",
        "search": "**the search**, from the start of Ray to the end of its last trial",
        "whole": "with best and baseline trained once more and tracked, and the report",
    }
    for way, label in (("unpacked", "one trial per process"), ("packed", "in packs")):
        text = "a round of a trial, of one core, without Ray, Tune and MLflow"
        lines += [(f"{label}: {text}", *(f"{row['training'][way] / 1000:.4f}" for row in rows))]
        lines += [(f"{label}: {text}", *(f"{row[way][key]:.1f}" for row in rows)) for key, text in what.items()]
    return "A search of 32 trials of 20 rounds on digits", build_table(("seconds", *[""] * len(rows)), lines, "---:")


def build_profile_body(results: dict[str, Any]) -> tuple[str, str]:
    """Builds the tables of the time of the driver's round and of an actor's client group, by operation."""
    tables = []
    for name, title in (("driver", "the driver, per round"), ("group", "an actor, per client group of 10")):
        spent = results["rows"][0][name]
        rows = [(label, f"{ms:.2f}", f"{100 * ms / sum(spent.values()):.0f} %") for label, ms in spent.items()]
        tables.append(build_table((title, "ms", "share"), rows, "---:"))
    return "Where a round of W1 goes", "\n\n".join(tables)


def build_widths_body(results: dict[str, Any]) -> tuple[str, str]:
    """Builds the tables that compare the group size of ``vectorize: auto`` with others."""
    rows = [
        (row["model"], str(row["batch"]), str(row["width"]),
         *(f"{row['ratios'][actors]:.2f}" if row["ratios"] else "–" for actors in "1234"))
        for row in results["rows"]
    ]  # fmt: skip
    head = ("model", "batch", "C", "1 actor", "2 actors", "3 actors", "4 actors")
    text = "Round time at the group size C that is taken, relative to C = 1 (20 sampled, 10 steps)."
    return "`vectorize: auto` against one by one", f"{text}\n\n{build_table(head, rows, '---:')}"


BODIES = {
    "check": build_check_body,
    "start": build_start_body,
    "search": build_search_body,
    "profile": build_profile_body,
    "widths": build_widths_body,
}
"""The parts that are not tables of systems: a heading and a body."""


if __name__ == "__main__":
    main()
