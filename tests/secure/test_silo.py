"""The protocol: the survivors' exact sum whoever vanishes, and nothing else."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from fednar_ray.core.errors import RoundAborted, SiloRefused
from fednar_ray.secure.messages import UnmaskTask
from fednar_ray.secure.silo import Silo
from fednar_ray.secure.words import WordVector
from tests.support.silos import build_plan, build_silos, collect, mask, reveal, start_attempt

LENGTH = 500


def draw_vectors(count: int, length: int = LENGTH) -> dict[int, WordVector]:
    generator = np.random.default_rng(7)
    return {i: generator.integers(0, 2**32, length, dtype=np.uint32) for i in range(count)}


def add(vectors: dict[int, WordVector], lost: Any = ()) -> bytes:
    total = sum(vector.astype(object) for i, vector in vectors.items() if i not in lost) % 2**32  # Python's integers
    return np.asarray(total).astype(np.uint32).tobytes()


@pytest.mark.parametrize(("clients", "threshold"), [(3, 0.6), (4, 0.67), (5, 0.6), (5, 0.8)])
def test_whoever_vanishes_before_sending_or_while_unmasking_the_sum_of_the_others_is_exact(
    tmp_path: Path, clients: int, threshold: float
) -> None:
    plan = build_plan(tmp_path, threshold=threshold)
    silos, vectors = build_silos(plan, clients), draw_vectors(clients)
    attempt, number = start_attempt(plan, silos), 0
    spare = clients - attempt.threshold
    for count in range(spare + 1):
        for before in combinations(range(clients), count):
            rest = [i for i in range(clients) if i not in before]
            for while_unmasking in (lost for k in range(spare - count + 1) for lost in combinations(rest, k)):
                number += 1
                masked = collect(silos, start_attempt(plan, silos, number, round_index=number), vectors, before)
                found = masked.unmask(reveal(silos, masked, while_unmasking))
                assert found.tobytes() == add(vectors, before), (before, while_unmasking)
    assert number > 1


def test_a_client_that_vanishes_after_sending_is_in_the_sum_without_being_asked(tmp_path: Path) -> None:
    plan = build_plan(tmp_path)
    silos, vectors = build_silos(plan, 4), draw_vectors(4)
    masked = collect(silos, start_attempt(plan, silos), vectors)
    assert masked.unmask(reveal(silos, masked, lost={0})).tobytes() == add(vectors)


def test_a_client_without_a_key_has_no_masks(tmp_path: Path) -> None:
    plan = build_plan(tmp_path)
    silos, vectors = build_silos(plan, 4), draw_vectors(4)
    attempt = start_attempt(plan, silos)
    attempt = replace(attempt, keys={i: key for i, key in attempt.keys.items() if i != 1})
    masked = collect(silos, attempt, vectors, lost={1})
    assert masked.vanished == ()
    assert masked.unmask(reveal(silos, masked)).tobytes() == add(vectors, {1})


def test_fewer_than_t_updates_are_not_unmasked(tmp_path: Path) -> None:
    plan = build_plan(tmp_path)
    silos = build_silos(plan, 4)
    masked = collect(silos, start_attempt(plan, silos), draw_vectors(4), lost={0, 3})
    with pytest.raises(SiloRefused, match="2 updates arrived, and a sum needs 3"):
        reveal(silos, masked)


def test_fewer_than_t_shares_do_not_unmask(tmp_path: Path) -> None:
    plan = build_plan(tmp_path)
    silos, vectors = build_silos(plan, 5), draw_vectors(5)
    masked = collect(silos, start_attempt(plan, silos), vectors)
    with pytest.raises(RoundAborted, match="the shares of a seed do not fit together"):
        masked.unmask(reveal(silos, masked, lost={0, 1}))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_client_reveals_one_kind_of_share_only_also_after_a_restart(tmp_path: Path, *, restarted: bool) -> None:
    plan = build_plan(tmp_path)
    silos = build_silos(plan, 4)
    masked = collect(silos, start_attempt(plan, silos), draw_vectors(4), lost={3})
    request, task = masked.build_request(), masked.build_tasks()[0]
    first = silos[0].reveal(request, task)
    asked = Silo(plan, 0) if restarted else silos[0]
    assert asked.reveal(request, task) == first
    assert sorted(first.own) == [0, 1, 2]
    assert sorted(first.pairs) == [(0, 3), (1, 3), (2, 3)]
    late = mask(silos[3], 3, masked.attempt, draw_vectors(4)[3])  # the vector of client 3 arrives after all
    masked.add(late)
    with pytest.raises(SiloRefused, match="other shares were revealed"):
        asked.reveal(masked.build_request(), masked.build_tasks()[0])


@pytest.mark.parametrize("restarted", [False, True])
def test_a_client_masks_one_vector_per_attempt(tmp_path: Path, *, restarted: bool) -> None:
    plan = build_plan(tmp_path)
    silos, vectors = build_silos(plan, 4), draw_vectors(4)
    attempt = start_attempt(plan, silos)
    first = mask(silos[0], 0, attempt, vectors[0])
    asked = Silo(plan, 0) if restarted else silos[0]
    again = mask(asked, 0, attempt, vectors[0])
    assert again.vector.tobytes() == first.vector.tobytes()
    assert again.packages == first.packages
    with pytest.raises(SiloRefused, match="another masked update was sent"):
        mask(asked, 0, attempt, vectors[1])


def test_every_run_round_and_attempt_has_masks_of_its_own(tmp_path: Path) -> None:
    plan = build_plan(tmp_path)
    silos, zeros = build_silos(plan, 3), np.zeros(LENGTH, dtype=np.uint32)
    attempts = [start_attempt(plan, silos, 0), start_attempt(plan, silos, 1), start_attempt(plan, silos, round_index=3)]
    other = build_plan(tmp_path, run="another")
    strangers = build_silos(other, 3)  # with the same keys
    seen = [mask(silos[0], 0, attempt, zeros) for attempt in attempts]
    seen.append(mask(strangers[0], 0, start_attempt(other, strangers), zeros))
    assert len({update.vector.tobytes() for update in seen}) == len(seen)
    assert len({update.packages[1] for update in seen}) == len(seen)


def test_the_driver_holds_uniform_bytes_until_the_sum_is_unmasked(tmp_path: Path) -> None:
    plan, length = build_plan(tmp_path), 100_000
    silos, vectors = build_silos(plan, 4), {i: np.full(length, 3, dtype=np.uint32) for i in range(4)}
    attempt = start_attempt(plan, silos)
    updates = [mask(silo, i, attempt, vectors[i]) for i, silo in silos.items()]
    partial = np.add.reduce([update.vector for update in updates[:3]], dtype=np.uint32)
    differences = [a.vector - b.vector for a, b in combinations(updates, 2)]
    whole = np.add.reduce([update.vector for update in updates], dtype=np.uint32)
    held = [*(update.vector for update in updates), partial, whole, *differences]
    values = [chisquare(np.bincount(vector.view(np.uint8), minlength=256)).pvalue for vector in held]
    assert min(values) > 1e-3  # of the keys that ``build_silos`` draws
    plain = vectors[0] + np.random.default_rng(0).integers(0, 2**24, length, dtype=np.uint32)
    assert (
        chisquare(np.bincount(plain.view(np.uint8), minlength=256)).pvalue < 1e-9
    )  # what a quantized update looks like


def test_the_vector_of_a_client_called_vanished_stays_masked(tmp_path: Path) -> None:
    # the driver says that client 3 vanished, although its vector arrived
    plan = build_plan(tmp_path)
    silos, vectors = build_silos(plan, 4), draw_vectors(4, 100_000)
    attempt = start_attempt(plan, silos)
    hidden = mask(silos[3], 3, attempt, np.zeros(100_000, dtype=np.uint32)).vector
    masked = collect(silos, attempt, vectors, lost={3})
    reveals = reveal(silos, masked)
    assert masked.unmask(reveals).tobytes() == add(vectors, {3})
    assert not any(3 in each.own for each in reveals)  # no share of the self-mask, which is still in the vector
    assert chisquare(np.bincount(hidden.view(np.uint8), minlength=256)).pvalue > 1e-3


def test_a_driver_that_tells_clients_different_stories_gets_t_shares_of_one_kind_at_most(tmp_path: Path) -> None:
    plan = build_plan(tmp_path)
    silos, vectors = build_silos(plan, 4), draw_vectors(4)
    attempt = start_attempt(plan, silos)
    arrived, vanished = collect(silos, attempt, vectors), collect(silos, attempt, vectors, lost={3})
    stories = [arrived, arrived, vanished]  # what clients 0, 1 and 2 are told of client 3
    answers = [
        silos[i].reveal(told.build_request(), next(task for task in told.build_tasks() if task.client_ids == (i,)))
        for i, told in enumerate(stories)
    ]
    own = [answer for answer in answers if 3 in answer.own]
    pairs = [answer for answer in answers if (0, 3) in answer.pairs]
    assert (len(own), len(pairs)) == (2, 1)  # three of a kind are needed
    for i, other in ((0, vanished), (1, vanished), (2, arrived)):
        task = next(task for task in other.build_tasks() if task.client_ids == (i,))
        with pytest.raises(SiloRefused, match="other shares were revealed"):
            silos[i].reveal(other.build_request(), task)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"run": "another"}, "it is another run's"),
        ({"members": (0, 1)}, "it has 2 members, at least 3 are required"),
        ({"members": (0, 0, 1, 2)}, "it has 4 members"),
        ({"threshold": 2}, "its threshold is 2 of 4"),
        ({"keys": {0: b"0" * 32}}, "it has the public keys of 1 members"),
    ],
)
def test_attempts_in_which_an_update_would_not_stay_secret_are_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    plan = build_plan(tmp_path)
    silos = build_silos(plan, 4)
    with pytest.raises(SiloRefused, match=problem):
        mask(silos[0], 0, start_attempt(plan, silos, **changes), draw_vectors(1)[0])


def test_a_client_refuses_an_attempt_with_another_key_in_its_name(tmp_path: Path) -> None:
    plan = build_plan(tmp_path)
    silos = build_silos(plan, 4)
    attempt = start_attempt(plan, silos)
    swapped = replace(attempt, keys={**attempt.keys, 0: attempt.keys[1]})
    with pytest.raises(SiloRefused, match="does not have this client's public key"):
        mask(silos[0], 0, swapped, draw_vectors(1)[0])


def test_requests_that_do_not_fit_the_attempt_are_refused(tmp_path: Path) -> None:
    plan = build_plan(tmp_path)
    silos = build_silos(plan, 4)
    masked = collect(silos, start_attempt(plan, silos), draw_vectors(4))
    request, task = masked.build_request(), masked.build_tasks()[0]
    for changes in ({"arrived": (0, 1, 2)}, {"arrived": (1, 2, 3), "vanished": (0,)}, {"vanished": (3,)}):
        with pytest.raises(SiloRefused, match="not those of the attempt"):
            silos[0].reveal(replace(request, **changes), task)
    wrong = {**task.packages, 1: task.packages[2]}
    with pytest.raises(SiloRefused, match="the shares of client 1 were not encrypted for this client"):
        silos[0].reveal(request, UnmaskTask(client_ids=(0,), packages=wrong))
    silos[0].reveal(request, task)
