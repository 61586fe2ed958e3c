"""Measures the rate of a large matrix product: what the machine's cores, or its GPU, can do at most."""

import argparse
import json
import time

import torch
from workloads import WORKLOADS, count_round_flops

SIZES = {"cpu": 2048, "cuda": 8192}


def measure_peak(
    device: torch.device, dtype: torch.dtype = torch.float32, size: int | None = None, seconds: float = 1.0
) -> float:
    """Returns the largest rate of a square matrix product within ``seconds``, in GFLOP/s."""
    size = size or SIZES[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    torch.mm(a, b)
    while time.perf_counter() < until:
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * size**3 / best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Prints the rate of this machine's cores, and the operations of a round of a workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = 1e-9 * count_round_flops(WORKLOADS[options.workload])
    print("ROW " + json.dumps({"gflops": measure_peak(torch.device("cpu")), "round_gflop": work}), flush=True)


if __name__ == "__main__":
    main()
