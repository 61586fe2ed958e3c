"""Client states: rows are read as they were staged, views are immutable, and the file does not grow."""

import linecache
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import fednar_ray as fr
from fednar_ray.algorithms.presets import build_algorithm
from fednar_ray.checkpoint.store import Snapshot
from fednar_ray.config import read_algorithm
from fednar_ray.core.errors import RunFailed
from fednar_ray.federated import client_states
from fednar_ray.federated import server_state as federation_state
from fednar_ray.federated.client_states import ClientStates, StatesView
from fednar_ray.federated.server_state import FederationState, ServerSide
from tests.support.drawn import draw
from tests.support.journals import limit_disk

D = 5  # floats per row
ROW_BYTES = 4 * D
CLIENTS = 6
BUDGETS = {"in memory": 10**6, "three rows in memory": 3 * ROW_BYTES + 1, "on disk": 0}


def build_row(stamp: int) -> np.ndarray:
    """Returns a row that is unique for its stamp."""
    return np.arange(D, dtype=np.float32) + 1000 * stamp


def count_rows_on_disk(directory: Path) -> int:
    """Returns the number of rows in the unnamed file in ``directory``, which is found by its descriptor."""
    sizes = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this listing itself
            if os.readlink(link).startswith(f"{directory}/"):
                sizes.append(link.stat().st_size)
    assert len(sizes) <= 1
    assert all(size % ROW_BYTES == 0 for size in sizes)
    return sum(sizes) // ROW_BYTES


@pytest.fixture(params=BUDGETS)
def states(request: pytest.FixtureRequest, tmp_path: Path) -> ClientStates:
    return ClientStates(D, BUDGETS[request.param], tmp_path)


def test_a_client_without_a_row_is_still_zero(states: ClientStates) -> None:
    assert states.get(0) is None
    assert len(states) == 0


def test_staged_rows_become_current_together_with_the_commit(states: ClientStates) -> None:
    for client_id in range(CLIENTS):
        states.stage(client_id, build_row(client_id))
    assert [states.get(i) for i in range(CLIENTS)] == [None] * CLIENTS
    states.commit(3)
    for client_id in range(CLIENTS):
        np.testing.assert_array_equal(states.get(client_id), build_row(client_id))
    states.stage(2, build_row(9))
    np.testing.assert_array_equal(states.get(2), build_row(2))
    states.commit(4)
    np.testing.assert_array_equal(states.get(2), build_row(9))
    assert states.view().versions == {0: 3, 1: 3, 2: 4, 3: 3, 4: 3, 5: 3}


def test_discarded_rows_never_become_current(states: ClientStates) -> None:
    states.restore(0, build_row(1), 7)
    states.stage(0, build_row(2))
    states.stage(1, build_row(3))
    states.discard()
    states.commit(8)
    np.testing.assert_array_equal(states.get(0), build_row(1))
    assert states.get(1) is None
    assert states.view().versions == {0: 7}


def test_a_row_is_copied_bit_by_bit_when_it_is_staged(states: ClientStates) -> None:
    odd = np.array([np.nan, -np.inf, -0.0, 1e-45, 1 / 3], dtype=np.float32)
    matrix = np.stack([odd, odd]).T  # its columns are not contiguous
    states.stage(0, matrix[:, 1])
    matrix[:] = 0
    states.commit(0)
    kept = states.get(0)
    assert kept is not None
    assert kept.tobytes() == odd.tobytes()


def test_only_rows_beyond_the_budget_are_stored_on_disk(tmp_path: Path) -> None:
    for budget, on_disk in ((CLIENTS * ROW_BYTES, 0), (CLIENTS * ROW_BYTES - 1, 1), (3 * ROW_BYTES, 3), (0, CLIENTS)):
        states = ClientStates(D, budget, tmp_path)
        for client_id in range(CLIENTS):
            states.stage(client_id, build_row(client_id))
        assert count_rows_on_disk(tmp_path) == on_disk
        del states
    assert list(tmp_path.iterdir()) == []  # the file has no name, so no crash leaves it behind


def test_without_a_budget_a_tenth_of_the_free_memory_is_used(tmp_path: Path) -> None:
    states = ClientStates(D, None, tmp_path)
    states.restore(0, build_row(0), 0)
    assert count_rows_on_disk(tmp_path) == 0
    too_large = ClientStates(2**44, None, tmp_path)  # a row of 64 TiB: none fits
    with limit_disk(0), pytest.raises(RunFailed, match=f"cannot be written to {tmp_path}: "):
        too_large.stage(0, build_row(0))


@pytest.mark.parametrize("budget", BUDGETS)
def test_replacing_rows_uses_space_for_at_most_twice_the_rows(budget: str, tmp_path: Path) -> None:
    states = ClientStates(D, BUDGETS[budget], tmp_path)
    rng = np.random.default_rng(0)
    for round_index in range(50):
        for client_id in rng.choice(CLIENTS, 4, replace=False).tolist():
            states.stage(client_id, build_row(10 * round_index + client_id))
        if round_index % 5 == 4:
            states.discard()  # an abandoned round leaves nothing behind either
        states.commit(round_index)
    assert count_rows_on_disk(tmp_path) <= 2 * CLIENTS


def test_slots_of_a_view_are_reused_only_after_its_release(tmp_path: Path) -> None:
    states = ClientStates(D, 0, tmp_path)
    for client_id in range(3):
        states.restore(client_id, build_row(client_id), 0)
    view, same = states.view(), states.view()
    for round_index in (1, 2):
        for client_id in range(3):
            states.restore(client_id, build_row(100 * round_index + client_id), round_index)
    # three in the views, three current, and one that is written before the row that it replaces is released
    assert count_rows_on_disk(tmp_path) == 3 + 3 + 1
    view.release()
    for client_id in range(3):
        np.testing.assert_array_equal(same.read(client_id), build_row(client_id))
        states.restore(client_id, build_row(300 + client_id), 3)
    assert count_rows_on_disk(tmp_path) == 7
    same.release()
    later = states.view()
    for client_id in range(3):
        states.restore(client_id, build_row(400 + client_id), 4)
    assert count_rows_on_disk(tmp_path) == 7  # in the released slots
    for client_id in range(3):
        np.testing.assert_array_equal(later.read(client_id), build_row(300 + client_id))
        np.testing.assert_array_equal(states.get(client_id), build_row(400 + client_id))


def test_a_thread_reads_views_while_rows_are_replaced(states: ClientStates) -> None:
    """A thread writes checkpoints this way; row and version of a client are of the same round in every view."""
    views: list[StatesView | None] = []
    offered, wrong = threading.Semaphore(0), list[tuple[int, int, float]]()

    def read_all() -> None:
        for index in range(300):
            offered.acquire()
            view = views[index]
            assert view is not None
            for client_id, version in view.versions.items():
                row = view.read(client_id)
                if not np.array_equal(row, build_row(version)):
                    wrong.append((client_id, version, float(row[0])))
            view.release()
            views[index] = None

    reader = threading.Thread(target=read_all)
    reader.start()
    for round_index in range(300):
        for client_id in range(round_index % 2, CLIENTS, 2):
            states.stage(client_id, build_row(round_index))
        states.commit(round_index)
        views.append(states.view())
        offered.release()
    reader.join()
    assert wrong == []


class ComparedWithDictionary(RuleBasedStateMachine):
    """Compares any sequence of operations with dictionaries of stamps; each stamp stands for one row, once."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()

    @initialize(budget=st.sampled_from([0, ROW_BYTES, 4 * ROW_BYTES, 10**6]))
    def start(self, budget: int) -> None:
        self.states = ClientStates(D, budget, Path(self.folder.name))
        self.current: dict[int, int] = {}
        self.versions: dict[int, int] = {}
        self.staged: dict[int, int] = {}
        self.views: list[tuple[StatesView, dict[int, int], dict[int, int]]] = []
        self.stamps = self.round = self.most_alive = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(client_id=st.integers(0, CLIENTS - 1))
    def stage(self, client_id: int) -> None:
        if client_id in self.staged:
            return  # a client trains once per round
        self.stamps += 1
        self.states.stage(client_id, build_row(self.stamps))
        self.staged[client_id] = self.stamps
        viewed = {stamp for _, rows, _ in self.views for stamp in rows.values()}
        alive = len({*self.current.values(), *self.staged.values(), *viewed})
        self.most_alive = max(self.most_alive, alive)

    @rule()
    def commit(self) -> None:
        self.states.commit(self.round)
        self.current |= self.staged
        self.versions |= dict.fromkeys(self.staged, self.round)
        self.staged = {}
        self.round += 1

    @rule()
    def discard(self) -> None:
        self.states.discard()
        self.staged = {}

    @rule()
    def look(self) -> None:
        self.views.append((self.states.view(), dict(self.current), dict(self.versions)))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.views:
            view, _, _ = self.views.pop(data.draw(st.integers(0, len(self.views) - 1)))
            view.release()

    @invariant()
    def current_rows_are_those_last_committed(self) -> None:
        assert len(self.states) == len(self.current)
        for client_id in range(CLIENTS):
            row = self.states.get(client_id)
            if client_id in self.current:
                np.testing.assert_array_equal(row, build_row(self.current[client_id]))
            else:
                assert row is None

    @invariant()
    def views_are_as_they_were(self) -> None:
        for view, rows, versions in self.views:
            assert view.versions == versions
            for client_id, stamp in rows.items():
                np.testing.assert_array_equal(view.read(client_id), build_row(stamp))

    @invariant()
    def the_file_holds_no_more_rows_than_were_ever_needed_at_once(self) -> None:
        assert count_rows_on_disk(Path(self.folder.name)) <= self.most_alive


def test_any_sequence_of_operations_matches_a_dictionary() -> None:
    options = draw(60, stateful_step_count=40, derandomize=True)
    run_state_machine_as_test(ComparedWithDictionary, settings=options)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_full_disk_fails_the_run_and_the_error_names_the_directory(budget: str, tmp_path: Path) -> None:
    states = ClientStates(D, BUDGETS[budget], tmp_path)
    room = 2 * ROW_BYTES + 7  # the third row does not fit completely
    fits = {"in memory": CLIENTS, "three rows in memory": 5, "on disk": 2}[budget]
    with limit_disk(room):
        for client_id in range(fits):
            states.stage(client_id, build_row(client_id))
        states.commit(0)
        if fits < CLIENTS:
            with pytest.raises(RunFailed, match=f"a client's state cannot be written to {tmp_path}: File too large"):
                states.stage(fits, build_row(fits))
    for client_id in range(fits):
        np.testing.assert_array_equal(states.get(client_id), build_row(client_id))


def test_a_deleted_directory_fails_the_run(tmp_path: Path) -> None:
    states = ClientStates(D, 0, tmp_path / "gone")
    with pytest.raises(RunFailed, match=f"cannot be written to {tmp_path / 'gone'}: No such file"):
        states.stage(0, build_row(0))


# --- In rounds


def build_experiment(preset: str, **execution: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": 6, "clients_per_round": 3, "local_steps": 2, "batch_size": 5},
            "model": {"hidden": 4},
            "algorithm": {"name": preset},
            "execution": {"placement": "serial", **execution},
        }
    )


@pytest.mark.parametrize("preset", ["scaffold", "scaffold+exp", "feddyn"])
def test_states_on_disk_end_in_the_same_bytes_as_states_in_memory(preset: str, federation: fr.Federation) -> None:
    *_, in_memory = fr.iter_rounds(build_experiment(preset), federation=federation)
    dimension = len(in_memory.parameters)
    for budget in (0, 2 * 4 * dimension):
        *_, on_disk = fr.iter_rounds(build_experiment(preset, state_memory_bytes=budget), federation=federation)
        assert on_disk.parameters.tobytes() == in_memory.parameters.tobytes()


def test_a_run_without_space_for_its_states_fails_with_a_clear_error(federation: fr.Federation) -> None:
    rounds = fr.iter_rounds(build_experiment("scaffold", state_memory_bytes=0), federation=federation)
    next(rounds)
    with limit_disk(0), pytest.raises(RunFailed, match=r"a client's state cannot be written to /.*: File too large"):
        list(rounds)


# --- An interruption at any line


def split_snapshot(snapshot: Snapshot) -> tuple[int, bytes, dict[int, tuple[int, bytes]]]:
    """Returns the contents of a checkpoint: the next round, the server's vectors, and each client's version and row."""
    rows = {i: (version, snapshot.read_row(i).tobytes()) for i, version in snapshot.rows.items()}
    snapshot.release()
    return snapshot.next_round, b"".join(array.tobytes() for _, array in sorted(snapshot.arrays.items())), rows


def stop_mid_run(budget: int, directory: Path) -> tuple[FederationState, ServerSide]:
    """Returns a federation after round 0 with staged rows of round 1; two replace older rows, one is a first row."""
    algorithm = build_algorithm(read_algorithm({"name": "scaffold"}))
    state = FederationState.start(algorithm, build_row(0), np.zeros(0), ClientStates(D, budget, directory))
    for client_id in range(3):
        state.clients.stage(client_id, build_row(10 + client_id))
    state.advance(
        ServerSide(
            next_round=1,
            server=algorithm.server.init(build_row(1)),
            buffers=np.zeros(0),
            shared={"control": build_row(5)},
        )
    )
    for client_id in (0, 2, 4):
        state.clients.stage(client_id, build_row(20 + client_id))
    then = ServerSide(
        next_round=2, server=algorithm.server.init(build_row(2)), buffers=np.zeros(0), shared={"control": build_row(6)}
    )
    return state, then


class InterruptAtLine:
    """Raises KeyboardInterrupt at the n-th line that runs in the modules of the state."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, _: Any) -> "InterruptAtLine | None":
        if frame.f_code.co_filename not in (client_states.__file__, federation_state.__file__):
            return None
        # leaving a ``with`` is also a line event, but Python delivers no signal there: the lock would remain held
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if event == "line" and not line.startswith("with "):
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("budget", BUDGETS)
def test_an_interruption_at_any_line_leaves_the_state_before_or_after_the_round(budget: str, tmp_path: Path) -> None:
    state, then = stop_mid_run(BUDGETS[budget], tmp_path)
    before = split_snapshot(state.take_snapshot([], {}))
    state.advance(then)
    after = split_snapshot(state.take_snapshot([], {}))
    assert before[0] < after[0]
    found = []
    for line in range(1000):
        state, then = stop_mid_run(BUDGETS[budget], tmp_path)
        tracer = sys.gettrace()
        sys.settrace(InterruptAtLine(line))
        try:
            state.advance(then)
        except KeyboardInterrupt:
            found.append(split_snapshot(state.take_snapshot([], {})))
        else:
            break
        finally:
            sys.settrace(tracer)
    assert len(found) > 5
    assert [line for line, left in enumerate(found) if left not in (before, after)] == []
