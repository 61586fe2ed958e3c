"""What the privacy of clients adds to a round, on W1 and W4."""

import argparse
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
import workloads as w

import fednar_ray as fr

BOUNDS = ("fixed", "adaptive", "fednar")
UNCOUNTED = 2


def build_experiment(workload: w.Workload, rounds: int, bound: str | None) -> fr.Experiment:
    """Builds the workload with FedNAR and Poisson samples; ``bound`` None: without privacy."""
    sections: dict[str, Any] = w.build_sections(workload, rounds, "fedavg", "fednar")
    sections["federation"]["sampling"] = "poisson"
    sections["evaluation"]["every"] = rounds + 1
    sections["execution"] = {"placement": "pooled", "actors": 2, "cpus_per_actor": 0.25, "compile": "off"}
    if bound is not None:
        sections["privacy"] = {"noise_multiplier": 1.0, "delta": 1e-3, "bound": bound}
    return fr.Experiment.model_validate(sections)


def measure(name: str, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each counted round of each run, of which each trains a round in turn."""
    workload, clients = w.WORKLOADS[name], w.build_clients(name, None)
    federation = fr.Federation(
        [clients[i] for i in range(workload.clients)], test=tuple(part[:10] for part in clients[0])
    )
    with fr.RaySession() as session:
        runs: dict[str, Iterator[fr.RoundReport]] = {
            bound or "none": fr.iter_rounds(
                build_experiment(workload, rounds, bound),
                federation=federation,
                model=w.build_model(workload.model),
                session=session,
            )
            for bound in (None, *BOUNDS)
        }
        seconds: dict[str, list[float]] = {each: [] for each in runs}
        for _ in range(rounds):
            for each, run in runs.items():
                seconds[each].append(next(run).metrics["round_seconds"])
        for run in runs.values():
            list(run)
    return {each: found[UNCOUNTED:] for each, found in seconds.items()}


def main() -> None:
    """Measures both workloads, and prints a row of ratios for each."""
    parser = argparse.ArgumentParser(prog="scripts/privacy_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| workload | round without privacy (ms) | " + " | ".join(f"bound {each}" for each in BOUNDS) + " |")
    print("|---|" + "---:|" * (1 + len(BOUNDS)))
    for label, name, count in (("W1", "mlp", rounds), ("W4", "resnet", max(UNCOUNTED + 1, rounds // 6))):
        seconds = measure(name, count)
        plain = seconds["none"]
        ratios = [median(a / b for a, b in zip(seconds[each], plain, strict=True)) for each in BOUNDS]
        cells = " | ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"| {label} | {1000 * median(plain):.1f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
