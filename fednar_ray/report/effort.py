"""What a run took: rounds, bytes, hours and, at given prices, money."""

from collections.abc import Sequence
from dataclasses import dataclass

from fednar_ray.config.recording import Prices
from fednar_ray.core.reports import RoundRecord

GIGABYTE, HOUR = 1e9, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What the first rounds of a run took."""

    rounds: int
    bytes_sent: float  # down and up, as in a real federation
    seconds: float  # of rounds, on the driver's clock
    client_seconds: float  # of training, summed over clients

    def compute_cost(self, prices: Prices, *, gpus: float) -> float:
        """Computes the cost of the training time and of the bytes, in the unit of the prices.

        Args:
            prices: The prices of an hour and of a gigabyte.
            gpus: The GPUs of each actor, such as 0.25, which share the price of a GPU; 0: clients trained on CPUs.
        """
        hour = gpus * prices.gpu_hour if gpus else prices.cpu_hour
        return self.client_seconds / HOUR * hour + self.bytes_sent / GIGABYTE * prices.gb


def measure_effort(history: Sequence[RoundRecord], rounds: int | None = None) -> Effort:
    """Measures the first ``rounds`` of recorded rounds; None: all of them."""
    counted = [record.metrics for record in history if rounds is None or record.round_index < rounds]

    def add(*names: str) -> float:
        return float(sum(metrics.get(name, 0.0) for metrics in counted for name in names))

    return Effort(
        rounds=len(counted),
        bytes_sent=add("bytes_down", "bytes_up"),
        seconds=add("round_seconds"),
        client_seconds=add("client_seconds"),
    )


def format_bytes(count: float) -> str:
    """Formats bytes in the largest fitting unit, such as "3.2 MB"."""
    for unit, size in (("GB", GIGABYTE), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def format_seconds(seconds: float) -> str:
    """Formats a duration in the largest fitting unit, such as "2.1 min"."""
    for unit, size in (("h", HOUR), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def format_cost(cost: float) -> str:
    """Formats a cost in the unit of the prices: with two decimals, or three digits if it is below 1."""
    return f"{cost:,.2f}" if cost >= 1 else f"{cost:.3g}"
