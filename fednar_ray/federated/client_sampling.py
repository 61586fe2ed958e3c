"""Samples the clients of each round, and simulates which of them return in time, in simulated time.

Every result follows from the settings, the seed, the round and the client alone. It depends neither on the rounds that
were sampled before, nor on who else is sampled. Nothing here waits in real time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.config.robustness import AvailabilitySettings, OnOffSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.random import Purpose, generator
from fednar_ray.core.schedules import Workload

Whole = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The clients of one round. Each sampled client returned, dropped out, or is late.

    Attributes:
        sampled: Ids of the clients that the round asked, sorted.
        returned: Ids of the clients that train, sorted.
        dropped_out: How many clients never return.
        late: How many clients return after the deadline, or after enough others.
        virtual_seconds: How long the round takes in simulated time; None without simulated speeds.
    """

    sampled: tuple[int, ...]
    returned: tuple[int, ...]
    dropped_out: int
    late: int
    virtual_seconds: float | None


class Availability:
    """Selects the clients of each round.

    Args:
        settings: Dropout, speeds, deadline, over-sampling, and spells of presence.
        seed: The experiment's seed.
        sizes: n_i of every client, [N].
        workload: The local steps, which decide how long a client takes.
        trace: Which client is present in which round, [N, T], from ``load_trace``; None: all are.
        poisson: Whether each client is drawn by itself, instead of a fixed number of them.
    """

    def __init__(
        self,
        settings: AvailabilitySettings,
        *,
        seed: int,
        sizes: Whole,
        workload: Workload,
        trace: Flags | None,
        poisson: bool = False,
    ) -> None:
        self._settings, self._seed, self._trace, self._poisson = settings, seed, trace, poisson
        self._sizes, self._workload = sizes, workload
        self._spells = None if settings.on_off is None else _Spells(settings.on_off, seed, len(sizes))

    def select(
        self,
        round_index: int,
        clients_per_round: int,
        participation: Sequence[int] | None,
        drawn: Flags | None = None,
    ) -> Selection:
        """Selects the clients of one round.

        A round ends when the last client that it wants returns. It wants all of ``participation``, or else
        ``clients_per_round`` of the sampled clients. If fewer return in time, it ends at the deadline; without a
        deadline, when the last of them returns, or at 0 seconds if nobody does.

        Args:
            round_index: t.
            clients_per_round: How many clients the round wants.
            participation: Explicit client ids. None draws from the present clients that have examples. A client that
                is named here but absent drops out.
            drawn: Who is asked, [N], if something else has drawn it.
        """
        present = self._find_present(round_index)
        if drawn is not None or (self._poisson and participation is None):
            flags = self._draw_each(round_index, clients_per_round) if drawn is None else drawn
            asked = np.flatnonzero(flags & (self._sizes > 0))
            wanted = len(asked)
        elif participation is None:
            asked = self._draw(round_index, np.flatnonzero(present & (self._sizes > 0)), clients_per_round)
            wanted = min(clients_per_round, len(asked))
        else:
            asked = np.array(sorted(participation), dtype=np.int64)
            wanted = len(asked)
        drops_out = _draw_uniforms(self._build_rng(Purpose.DROPOUT, round_index), asked) < self._settings.dropout
        back = asked[present[asked] & ~drops_out]
        seconds = self._compute_seconds(round_index, back)
        returned, virtual_seconds = (
            (back[:wanted], None) if seconds is None else self._find_first(back, seconds, wanted)
        )
        return Selection(
            sampled=tuple(sorted(asked.tolist())),
            returned=tuple(sorted(returned.tolist())),
            dropped_out=len(asked) - len(back),
            late=len(back) - len(returned),
            virtual_seconds=virtual_seconds,
        )

    def _build_rng(self, purpose: Purpose, round_index: int) -> np.random.Generator:
        return generator(self._seed, purpose, round_index=round_index)

    def _find_present(self, round_index: int) -> Flags:
        """Returns which clients are present when the round starts, [N]."""
        present = np.ones(len(self._sizes), dtype=np.bool_) if self._trace is None else self._trace[:, round_index]
        return present if self._spells is None else present & self._spells.find_present(round_index)

    def _draw(self, round_index: int, present: Whole, clients_per_round: int) -> Whole:
        """Draws the clients to ask. Without speeds they return in the order of the draw, which favors nobody."""
        count = round(self._settings.over_sampling * clients_per_round, 9)  # 1.1 · 100 is 110, not 110.00000000000001
        return self._build_rng(Purpose.SAMPLING, round_index).choice(
            present, math.ceil(min(count, len(present))), replace=False
        )

    def _draw_each(self, round_index: int, clients_per_round: int) -> Flags:
        """Draws each client by itself, with probability ``clients_per_round``/N, [N]."""
        draws = self._build_rng(Purpose.SAMPLING, round_index).random(len(self._sizes))
        return draws < clients_per_round / len(self._sizes)

    def _compute_seconds(self, round_index: int, clients: Whole) -> Numbers | None:
        """Returns the simulated seconds that ``clients`` take for their local steps; None without speeds."""
        speed = self._settings.speed
        if speed is None:
            return None
        own = speed.spread * _draw_normals(self._build_rng(Purpose.SPEED, 0), clients)
        # address 0 belongs to the speeds themselves
        jitter = speed.jitter * _draw_normals(self._build_rng(Purpose.SPEED, round_index + 1), clients)
        return self._workload.steps(self._sizes[clients]) / speed.steps_per_second * np.exp(-own - jitter)

    def _find_first(self, clients: Whole, seconds: Numbers, wanted: int) -> tuple[Whole, float]:
        """Returns the first ``wanted`` clients in time, ties in the order of the draw, and how long the round takes."""
        deadline = self._settings.deadline_seconds
        first = np.argsort(seconds, kind="stable")[:wanted]
        if deadline is not None:
            first = first[seconds[first] <= deadline]
            if len(first) < wanted:
                return clients[first], deadline
        return clients[first], float(seconds[first].max(initial=0.0))


class _Spells:
    """A two-state Markov chain per client: present or absent, stationary at round 0, with geometric spells.

    The latest round is kept, so the next one costs O(N); an earlier one is computed from round 0 again.
    """

    def __init__(self, settings: OnOffSettings, seed: int, clients: int) -> None:
        self._seed = seed
        self._share = 1 / (1 + settings.off_rounds / settings.on_rounds)
        self._stay, self._come = 1 - 1 / settings.on_rounds, 1 / settings.off_rounds
        self._last, self._on = -1, np.zeros(clients, dtype=np.bool_)

    def find_present(self, round_index: int) -> Flags:
        """Returns which clients are present in a round, [N]."""
        for t in range(self._last + 1 if self._last <= round_index else 0, round_index + 1):
            chance = np.where(self._on, self._stay, self._come) if t else self._share
            self._on = generator(self._seed, Purpose.AVAILABILITY, round_index=t).random(len(self._on)) < chance
            self._last = t
        return self._on


def _draw_uniforms(rng: np.random.Generator, counters: Whole) -> Numbers:
    """Returns one number in [0, 1) per counter, which does not depend on the other counters.

    This is SplitMix64, from a start that ``rng`` draws. One generator per client takes 70 ms for 1,000 clients.

    Source: Steele, Lea and Flood, OOPSLA 2014.
    """
    z = rng.integers(2**64, dtype=np.uint64) + counters.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _draw_normals(rng: np.random.Generator, clients: Whole) -> Numbers:
    """Returns one standard normal number per client (Box and Muller, 1958)."""
    u, v = _draw_uniforms(rng, np.stack([2 * clients, 2 * clients + 1]))
    normals: Numbers = np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)
    return normals


def load_trace(path: str, clients: int, rounds: int) -> Flags:
    """Loads which clients are present in which round.

    Args:
        path: A .csv file (commas, no header) or a .npy file of 0 and 1, with one row per client and one column per
            round.
        clients: N.
        rounds: The least number of columns.

    Returns:
        The presence of each client in each round, [N, T].

    Raises:
        DataError: The file cannot be read, holds something else, or has another shape.
    """
    place = f"availability.trace: {path}"
    match Path(path).suffix.lower():
        case ".csv":
            trace = _read_csv(path, place)
        case ".npy":
            trace = _read_npy(path, place)
        case _:
            raise DataError(f"{place}: a .csv or .npy file is needed")
    if len(trace) != clients:
        raise DataError(f"{place}: has {len(trace)} rows; {clients} are needed, one per client")
    if trace.shape[1] < rounds:
        raise DataError(f"{place}: has {trace.shape[1]} columns; at least {rounds} are needed, one per round")
    return trace


def _read_csv(path: str, place: str) -> Flags:
    try:
        text = Path(path).read_text(encoding="utf-8-sig").rstrip()
    except (OSError, ValueError) as error:
        raise DataError(f"{place}: cannot be read: {error}") from None
    if not text:
        raise DataError(f"{place}: is empty; one line of 0 and 1 per client is needed")
    rows = [_parse_row(line, f"{place}, line {number}") for number, line in enumerate(text.split("\n"), 1)]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise DataError(f"{place}, line {number}: has {len(row)} values, and line 1 has {len(rows[0])}")
    return np.array(rows)


def _parse_row(line: str, place: str) -> Flags:
    cells = [cell.strip() for cell in line.split(",")]
    for column, cell in enumerate(cells, 1):
        if cell not in ("0", "1"):
            raise DataError(f"{place}, value {column}: {cell[:20]!r}; 0 or 1 is needed, with commas and no header")
    return np.array([cell == "1" for cell in cells])


def _read_npy(path: str, place: str) -> Flags:
    try:
        with open(path, "rb") as file:
            values: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - a damaged header makes NumPy raise almost anything
        raise DataError(f"{place}: cannot be read: {error}") from None
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise DataError(f"{place}: holds {values.dtype} {values.shape}; 0 and 1 of clients × rounds are needed")
    wrong = np.argwhere((values != 0) & (values != 1))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise DataError(f"{place}: row {row}, column {column} (from 0): {values[row, column]}; 0 or 1 is needed")
    return values.astype(np.bool_)
