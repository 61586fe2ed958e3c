"""Which clients are sampled, return or are late: by hand, against theory, and independent of earlier rounds."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from fednar_ray.config.robustness import AvailabilitySettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.schedules import Workload
from fednar_ray.federated.client_sampling import Availability, Selection, load_trace
from tests.support.drawn import draw
from tests.support.oracle import SAMPLING, build_generator

ONE_STEP = Workload(batch_size=10, local_steps=1, local_epochs=None)
TWO_EPOCHS = Workload(batch_size=10, local_steps=None, local_epochs=2)
UNEVEN = (10, 20, 30, 40)  # two epochs of batches of 10: 2, 4, 6 and 8 steps; at 2 steps a second 1, 2, 3 and 4 s
drawn = draw(60)
seeds = st.integers(0, 2**64)


def build_availability(
    clients: int, seed: int = 0, trace: Any = None, sizes: Any = None, workload: Workload = ONE_STEP, **section: Any
) -> Availability:
    return Availability(
        AvailabilitySettings(**section),
        seed=seed,
        sizes=np.full(clients, 5) if sizes is None else np.array(sizes),
        workload=workload,
        trace=None if trace is None else np.array(trace, dtype=bool),
    )


def build_uneven(**section: Any) -> Availability:
    return build_availability(4, sizes=UNEVEN, workload=TWO_EPOCHS, speed={"steps_per_second": 2.0}, **section)


def summarize(selection: Selection) -> tuple[Any, ...]:
    """Returns the clients that returned, the numbers of dropped and late clients, and the seconds."""
    return selection.returned, selection.dropped_out, selection.late, selection.virtual_seconds


sections = st.fixed_dictionaries(
    {
        "dropout": st.sampled_from([0.0, 0.3, 0.9]),
        "on_off": st.none() | st.fixed_dictionaries({"on_rounds": st.floats(1, 9), "off_rounds": st.floats(1, 9)}),
        "over_sampling": st.floats(1, 3),
    }
)
clocks = st.just({}) | st.fixed_dictionaries(
    {
        "speed": st.fixed_dictionaries({"spread": st.floats(0, 2), "jitter": st.floats(0, 2)}),
        "deadline_seconds": st.none() | st.floats(0.1, 5),
    }
)


# Which clients a round samples


@drawn
@given(seed=seeds, clients=st.integers(1, 300), round_index=st.integers(0, 1000), data=st.data())
def test_by_default_clients_are_drawn_uniformly_and_all_return(seed, clients, round_index, data):
    count = data.draw(st.integers(1, clients))
    selection = build_availability(clients, seed).select(round_index, count, None)
    expected = tuple(sorted(build_generator(seed, SAMPLING, round_index).choice(clients, count, replace=False)))
    assert selection == Selection(sampled=expected, returned=expected, dropped_out=0, late=0, virtual_seconds=None)


def test_clients_without_examples_are_never_drawn():
    holders = [1, 2, 4, 5]
    here = build_availability(6, sizes=[0, 3, 9, 0, 1, 1])
    for t in range(20):
        expected = sorted(build_generator(0, SAMPLING, t).choice(holders, 3, replace=False))
        assert here.select(t, 3, None).sampled == tuple(expected)


def test_given_participants_are_used_unchanged():
    here = build_availability(9, over_sampling=3.0)
    assert here.select(0, 2, (7, 1, 4)).sampled == here.select(0, 2, (7, 1, 4)).returned == (1, 4, 7)


@pytest.mark.parametrize(
    ("factor", "wanted", "sampled"),
    [(1.0, 10, 10), (1.25, 10, 13), (1.1, 100, 110), (1.3, 10, 13), (1.01, 10, 11), (3.0, 100, 200), (1e308, 100, 200)],
)
def test_over_sampling_multiplies_the_number_of_clients_and_rounds_up(factor, wanted, sampled):
    selection = build_availability(200, over_sampling=factor).select(0, wanted, None)
    assert (len(selection.sampled), len(selection.returned), selection.late) == (sampled, wanted, sampled - wanted)


def test_over_sampling_without_speeds_keeps_the_clients_drawn_first():
    here = build_availability(50, over_sampling=1.25)
    for t in range(10):
        order = build_generator(0, SAMPLING, t).choice(50, 13, replace=False)
        assert here.select(t, 10, None).returned == tuple(sorted(order[:10]))


def test_over_sampling_compensates_for_dropouts():
    here = build_availability(100, over_sampling=2.0, dropout=0.3)
    for t in range(20):
        selection = here.select(
            t, 20, None
        )  # 40 are sampled; 28 are expected to return, with a standard deviation of 2.9
        assert len(selection.sampled) == 40
        assert len(selection.returned) == min(20, 40 - selection.dropped_out)


# Which clients are available


def test_a_trace_determines_which_clients_are_available():
    here = build_availability(3, trace=[[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    assert here.select(0, 2, None).sampled == (0, 2)
    assert here.select(1, 2, None).sampled == (1, 2)
    assert here.select(0, 3, None) == here.select(0, 2, None)  # fewer than wanted are available, so all are sampled
    assert here.select(0, 3, (2, 1)) == Selection(
        sampled=(1, 2), returned=(2,), dropped_out=1, late=0, virtual_seconds=None
    )


@pytest.mark.parametrize(("section", "seconds"), [({}, None), ({"speed": {}, "deadline_seconds": 5.0}, 0.0)])
def test_a_round_without_available_clients_is_empty(section, seconds):
    selection = build_availability(2, trace=[[0], [0]], over_sampling=2.0, **section).select(0, 2, None)
    assert selection == Selection(sampled=(), returned=(), dropped_out=0, late=0, virtual_seconds=seconds)


def test_a_client_is_available_only_if_both_trace_and_chain_say_so():
    everyone, spells = range(200), {"on_rounds": 3.0, "off_rounds": 3.0}
    listed = np.random.default_rng(0).random((200, 5)) < 0.5
    both = build_availability(200, trace=listed, on_off=spells)
    chain = build_availability(200, on_off=spells)
    for t in range(5):
        expected = set(chain.select(t, 1, everyone).returned) & set(np.flatnonzero(listed[:, t]))
        assert set(both.select(t, 1, everyone).returned) == expected
        assert set(both.select(t, 200, None).sampled) == expected


def compute_presence(clients: int, rounds: int, on_rounds: float, off_rounds: float) -> np.ndarray:
    """Returns which clients are available, [T, N]."""
    here = build_availability(clients, on_off={"on_rounds": on_rounds, "off_rounds": off_rounds})
    present = np.zeros((rounds, clients), dtype=bool)
    for t in range(rounds):
        present[t, list(here.select(t, 1, range(clients)).returned)] = True
    return present


def test_the_chain_is_stationary_from_round_0():
    present = compute_presence(8000, 12, on_rounds=6.0, off_rounds=2.0)
    # a round's clients are independent: its share has a standard error of √(0.75·0.25/8000)
    np.testing.assert_allclose(present.mean(axis=1), 0.75, atol=5 * math.sqrt(0.75 * 0.25 / 8000))
    # two rounds k apart correlate as (1 − 1/6 − 1/2)^k
    for apart in (1, 2, 3):
        assert np.corrcoef(present[0], present[apart])[0, 1] == pytest.approx((1 / 3) ** apart, abs=5 / math.sqrt(8000))


def test_spells_are_geometric_with_the_given_means():
    present = compute_presence(400, 400, on_rounds=5.0, off_rounds=3.0)
    for value, mean in ((True, 5.0), (False, 3.0)):
        lengths = np.array([n for client in present.T for n in list_spells(client, value, start_before=300)])
        assert len(lengths) > 10_000  # one in 8 rounds starts such a spell: about 15,000
        variance = mean * (mean - 1)  # (1 − p)/p² with p = 1/mean
        assert lengths.mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / len(lengths)))
        assert (lengths == 1).mean() == pytest.approx(1 / mean, abs=5 * 0.5 / math.sqrt(len(lengths)))
        assert lengths.var() == pytest.approx(variance, rel=0.1)  # about 5 of its standard errors


def list_spells(client: np.ndarray, value: bool, start_before: int) -> list[int]:
    """Returns the lengths of the spells of ``value`` that start after round 0 and before ``start_before``."""
    edges = np.flatnonzero(np.diff(client)) + 1
    return [end - a for a, end in pairwise(edges) if client[a] == value and a < start_before]


def test_spells_of_one_round_alternate():
    present = compute_presence(50, 4, on_rounds=1.0, off_rounds=1.0)
    np.testing.assert_array_equal(present[1:], ~present[:-1])
    assert present[0].any()
    assert not present[0].all()


# Which clients drop out


def test_each_client_drops_out_independently_at_the_given_rate():
    here, everyone, rounds = build_availability(2000, dropout=0.3), range(2000), 200
    lost = np.ones((rounds, 2000), dtype=bool)
    for t in range(rounds):
        selection = here.select(t, 1, everyone)
        lost[t, list(selection.returned)] = False
        assert selection.dropped_out == lost[t].sum()
    assert lost.mean() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / lost.size))
    # the binomial's variance, over rounds and over clients: the draws are independent
    assert lost.sum(axis=1).var() == pytest.approx(2000 * 0.21, rel=5 * math.sqrt(2 / rounds))
    assert lost.sum(axis=0).var() == pytest.approx(rounds * 0.21, rel=5 * math.sqrt(2 / 2000))
    for a, b in ((lost[:, :-1], lost[:, 1:]), (lost[:-1], lost[1:])):  # neighboring clients, and rounds
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)


@drawn
@given(seed=seeds, some=st.sets(st.integers(0, 99), min_size=1), t=st.integers(0, 50))
def test_the_fate_of_a_client_does_not_depend_on_the_other_clients(seed, some, t):
    here = build_availability(100, seed, dropout=0.3, speed={"spread": 0.5, "jitter": 0.5}, deadline_seconds=1.2)
    among_all = set(here.select(t, 1, range(100)).returned)
    assert set(here.select(t, 1, tuple(some)).returned) == some & among_all


# The virtual clock


@pytest.mark.parametrize(
    ("deadline", "expected"),
    [
        (None, ((0, 1, 2, 3), 0, 0, 4.0)),
        (10.0, ((0, 1, 2, 3), 0, 0, 4.0)),  # all have returned, so the round ends
        (4.0, ((0, 1, 2, 3), 0, 0, 4.0)),  # returning exactly at the deadline is in time
        (3.5, ((0, 1, 2), 0, 1, 3.5)),
        (0.5, ((), 0, 4, 0.5)),
    ],
)
def test_a_deadline_ends_the_round(deadline, expected):
    here = build_uneven(deadline_seconds=deadline)
    assert summarize(here.select(0, 4, None)) == summarize(here.select(0, 1, (3, 2, 1, 0))) == expected


@pytest.mark.parametrize(
    ("deadline", "expected"),
    [
        (None, ((0, 1), 0, 2, 2.0)),
        (3.0, ((0, 1), 0, 2, 2.0)),
        (1.5, ((0,), 0, 3, 1.5)),
    ],
)
def test_with_over_sampling_the_fastest_clients_are_included(deadline, expected):
    selection = build_uneven(over_sampling=2.0, deadline_seconds=deadline).select(0, 2, None)
    assert selection.sampled == (0, 1, 2, 3)
    assert summarize(selection) == expected


@pytest.mark.parametrize(("deadline", "seconds"), [(None, 3.0), (9.0, 9.0)])
def test_a_round_waits_for_absent_clients_until_the_deadline(deadline, seconds):
    here = build_uneven(trace=[[1], [1], [1], [0]], deadline_seconds=deadline)
    assert summarize(here.select(0, 1, range(4))) == ((0, 1, 2), 1, 0, seconds)
    # but a server that samples only available clients ends the round with the last of them
    assert summarize(here.select(0, 4, None)) == ((0, 1, 2), 0, 0, 3.0)


@pytest.mark.parametrize(("deadline", "seconds"), [(None, 0.0), (9.0, 9.0)])
def test_a_round_from_which_no_client_returns_lasts_until_the_deadline(deadline, seconds):
    here = build_uneven(trace=[[0]] * 4, deadline_seconds=deadline)
    assert summarize(here.select(0, 1, (0, 2))) == ((), 2, 0, seconds)


def test_of_equally_fast_clients_those_drawn_first_are_included():
    alike = {"over_sampling": 2.0, "speed": {"steps_per_second": 4.0}}
    selection = build_availability(6, **alike).select(0, 3, None)
    assert summarize(selection) == (build_availability(6, over_sampling=2.0).select(0, 3, None).returned, 0, 3, 0.25)
    assert any(build_availability(6, **alike).select(t, 3, None).returned != (0, 1, 2) for t in range(20))


def test_speeds_are_log_normal_with_a_constant_and_a_changing_part():
    clients, spread, jitter = 1500, 0.8, 0.4
    speed = {"steps_per_second": 3.0, "spread": spread, "jitter": jitter}
    here = build_availability(clients, workload=Workload(batch_size=1, local_steps=6, local_epochs=None), speed=speed)
    seconds = [[here.select(t, 1, (i,)).virtual_seconds for i in range(clients)] for t in (0, 1)]
    first, second = np.log(2.0 / np.array(seconds))  # 6 steps at 3 a second: 2 s for the median client
    deviation = math.hypot(spread, jitter)
    for logs in (first, second):
        assert stats.kstest(logs, "norm", args=(0, deviation)).pvalue > 1e-3
    expected = spread**2 / deviation**2
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(expected, abs=5 * (1 - expected**2) / math.sqrt(clients))
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 5 / math.sqrt(clients)
    assert (first - second).std() == pytest.approx(jitter * math.sqrt(2), rel=5 / math.sqrt(2 * clients))


@pytest.mark.parametrize("speed", [{"spread": 10.0, "jitter": 10.0, "steps_per_second": 1e-6}, {"spread": 10.0}])
def test_the_widest_spread_gives_finite_seconds(speed):
    here = build_availability(2000, speed=speed, workload=Workload(batch_size=1, local_steps=10**6, local_epochs=None))
    assert math.isfinite(here.select(0, 1, range(2000)).virtual_seconds)


@pytest.mark.parametrize("key", ["spread", "jitter", "steps_per_second"])
def test_extreme_speeds_are_refused(key):
    with pytest.raises(ValidationError, match=f"speed.{key}"):
        AvailabilitySettings(speed={key: 10.1 if key != "steps_per_second" else 1e-7})


# Independence of earlier rounds


@drawn
@given(seed=seeds, section=sections, clock=clocks, rounds=st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_a_round_does_not_depend_on_earlier_calls(seed, section, clock, rounds):
    trace = np.random.default_rng(1).random((30, 13)) < 0.8
    once = build_availability(30, seed, trace, **section, **clock)
    for t in rounds:
        assert once.select(t, 8, None) == build_availability(30, seed, trace, **section, **clock).select(t, 8, None)


@drawn
@given(
    seed=seeds, section=sections, clock=clocks, wanted=st.integers(1, 40), named=st.none() | st.sets(st.integers(0, 29))
)
def test_every_sampled_client_is_accounted_for(seed, section, clock, wanted, named):
    here = build_availability(30, seed, **section, **clock)
    selection = here.select(4, wanted, named)
    sampled, returned = selection.sampled, selection.returned
    assert list(sampled) == sorted(set(sampled))
    assert list(returned) == sorted(set(returned) & set(sampled))
    assert len(sampled) == len(returned) + selection.dropped_out + selection.late
    assert named is None or set(sampled) == named
    assert named is not None or len(returned) <= wanted
    if clock:
        assert 0 <= selection.virtual_seconds <= (clock["deadline_seconds"] or math.inf)
    else:
        assert selection.virtual_seconds is None


def test_seeds_and_rounds_give_different_fates():
    section = {"dropout": 0.5, "on_off": {"on_rounds": 2.0, "off_rounds": 2.0}}
    fates = {
        build_availability(60, seed, **section).select(t, 1, range(60)).returned for seed in (0, 1) for t in (0, 1, 2)
    }
    assert len(fates) == 6


# Traces

TRACE = np.array([[1, 0, 1], [0, 0, 1]])


def write_text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content, encoding="utf-8", newline="")


def write_array(values: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.array(values), allow_pickle=True)


def write_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, TRACE)


GOOD: dict[str, tuple[str, Callable[[Path], None]]] = {
    "csv": ("t.csv", write_text("1,0,1\n0,0,1\n")),
    "no newline at the end": ("t.csv", write_text("1,0,1\n0,0,1")),
    "empty lines at the end": ("t.csv", write_text("1,0,1\n0,0,1\n\n\n")),
    "from Windows": ("t.csv", write_text("\ufeff1,0,1\r\n0,0,1\r\n")),
    "spaces": ("t.CSV", write_text(" 1, 0, 1\n0 ,0 ,1 \n")),
    "bool": ("t.npy", write_array(TRACE.astype(bool))),
    "int8": ("t.npy", write_array(TRACE.astype(np.int8))),
    "float": ("t.npy", write_array(TRACE.astype(float))),
    "column by column": ("t.npy", lambda path: np.save(path, np.asfortranarray(TRACE))),
}


@pytest.mark.parametrize("name", GOOD)
def test_traces_in_every_format_are_read(name, tmp_path):
    file, write = GOOD[name]
    write(tmp_path / file)
    for rounds in (1, 3):  # more columns than rounds are allowed
        trace = load_trace(str(tmp_path / file), 2, rounds)
        assert trace.dtype == np.bool_
        np.testing.assert_array_equal(trace, TRACE)


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": ("t.csv", lambda path: None, "cannot be read: .*No such file"),
    "missing array": ("t.npy", lambda path: None, "cannot be read: .*No such file"),
    "a directory": ("t.csv", lambda path: path.mkdir(), "cannot be read"),
    "an array's directory": ("t.npy", lambda path: path.mkdir(), "cannot be read"),
    "another kind": ("t.txt", write_text("1,0,1\n0,0,1\n"), "a .csv or .npy file is needed"),
    "empty": ("t.csv", write_text(""), "is empty; one line of 0 and 1 per client is needed"),
    "only empty lines": ("t.csv", write_text("\n \n"), "is empty"),
    "a header": ("t.csv", write_text("r0,r1,r2\n1,0,1\n0,0,1\n"), "line 1, value 1: 'r0'; 0 or 1 is needed"),
    "a two": ("t.csv", write_text("1,0,1\n0,2,1\n"), "line 2, value 2: '2'; 0 or 1 is needed"),
    "a fraction": ("t.csv", write_text("1,0,1\n0,0,0.5\n"), "line 2, value 3: '0.5'"),
    "words": ("t.csv", write_text("1,0,true\n0,0,1\n"), "line 1, value 3: 'true'"),
    "semicolons": ("t.csv", write_text("1;0;1\n0;0;1\n"), "line 1, value 1: '1;0;1'.* with commas"),
    "a comma at the end": ("t.csv", write_text("1,0,1\n0,0,1,\n"), "line 2, value 4: ''"),
    "an empty line between": ("t.csv", write_text("1,0,1\n\n0,0,1\n"), "line 2, value 1: ''"),
    "a short line": ("t.csv", write_text("1,0,1\n0,1\n"), "line 2: has 2 values, and line 1 has 3"),
    "a long line": ("t.csv", write_text("1,0,1\n0,1,1,1\n"), "line 2: has 4 values, and line 1 has 3"),
    "no text": ("t.csv", lambda path: path.write_bytes(b"\x93\xff1,0"), "cannot be read: 'utf-8'"),
    "control characters": ("t.csv", write_text("1,0,\x00\n0,0,1\n"), r"line 1, value 3: '\\x00'"),
    "one client too few": ("t.csv", write_text("1,0,1\n"), "has 1 rows; 2 are needed, one per client"),
    "one client too many": ("t.npy", write_array([[1, 0, 1]] * 3), "has 3 rows; 2 are needed, one per client"),
    "too short": ("t.csv", write_text("1,0\n0,1\n"), "has 2 columns; at least 3 are needed, one per round"),
    "no rounds": ("t.npy", write_array(np.zeros((2, 0))), "has 0 columns; at least 3 are needed"),
    "one dimension": ("t.npy", write_array([1, 0]), r"holds int64 \(2,\); 0 and 1 of clients × rounds are needed"),
    "three dimensions": ("t.npy", write_array(np.ones((2, 3, 1))), r"holds float64 \(2, 3, 1\)"),
    "text": ("t.npy", write_array([["1", "0", "1"]] * 2), r"holds <U1 \(2, 3\)"),
    "not a number": ("t.npy", write_array([[1, 0, 1], [0, math.nan, 1]]), r"row 1, column 1 \(from 0\): nan; 0 or 1"),
    "a negative": ("t.npy", write_array([[1, 0, -1], [0, 0, 1]]), r"row 0, column 2 \(from 0\): -1; 0 or 1"),
    "objects": ("t.npy", write_array([[1, 0, None]] * 2), "cannot be read: Object arrays cannot be loaded"),
    "an archive": ("t.npy", write_archive, "cannot be read: the magic string"),
    "an empty array file": ("t.npy", write_text(""), "cannot be read"),
    "text for an array": ("t.npy", write_text("1,0,1\n0,0,1\n"), "cannot be read: the magic string"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_traces_are_refused_with_the_file_and_a_remedy(name, tmp_path):
    file, write, problem = BAD[name]
    write(tmp_path / file)
    with pytest.raises(DataError, match=problem) as error:
        load_trace(str(tmp_path / file), 2, 3)
    assert str(error.value).startswith(f"availability.trace: {tmp_path / file}")
    assert "\n" not in str(error.value)


@drawn
@given(suffix=st.sampled_from([".csv", ".npy"]), keep=st.floats(0, 1), flips=st.lists(st.integers(0, 1500), max_size=3))
def test_damaged_traces_are_read_as_zeros_and_ones_or_refused(tmp_path_factory, suffix, keep, flips):
    path = tmp_path_factory.mktemp("trace") / f"t{suffix}"
    if suffix == ".csv":
        np.savetxt(path, TRACE, fmt="%d", delimiter=",")
    else:
        np.save(path, TRACE)
    content = bytearray(path.read_bytes())
    for flip in flips:
        content[flip // 8 % len(content)] ^= 1 << flip % 8
    path.write_bytes(content[: math.ceil(keep * len(content))])
    try:
        trace = load_trace(str(path), 2, 2)
    except DataError:
        return
    assert trace.dtype == np.bool_
    assert trace.shape[0] == 2
    assert trace.shape[1] >= 2
