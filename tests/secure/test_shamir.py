"""Secret sharing, against published examples and by its definition."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednar_ray.secure.shamir import PRIME, SHARE_BYTES, recover_secret, split_secret

WIKIPEDIA = {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}
"""Wikipedia, "Shamir's secret sharing": f(x) = 1234 + 166x + 94x² modulo 1613."""


def test_the_published_example_of_wikipedia() -> None:
    assert split_secret([1234, 166, 94], list(WIKIPEDIA), prime=1613) == list(WIKIPEDIA.values())
    for points in combinations(WIKIPEDIA, 3):
        assert recover_secret({point: WIKIPEDIA[point] for point in points}, prime=1613) == 1234


def test_the_published_example_of_stinson() -> None:
    # Stinson, "Cryptography: theory and practice", threshold schemes: p = 17, t = 3, a(x) = 13 + 10x + 2x²
    assert split_secret([13, 10, 2], [1, 3, 5], prime=17) == [8, 10, 11]
    assert recover_secret({1: 8, 3: 10, 5: 11}, prime=17) == 13


def test_the_order_of_the_field_is_a_prime_that_holds_32_bytes() -> None:
    # Lucas and Lehmer: 2^p − 1 is prime if and only if s_(p−2) = 0, where s_0 = 4 and s_i = s_(i−1)² − 2
    s = 4
    for _ in range(521 - 2):
        s = (s * s - 2) % PRIME
    assert s == 0
    assert 2**256 < PRIME < 256**SHARE_BYTES


@given(data=st.data(), secret=st.binary(min_size=32, max_size=32), threshold=st.integers(1, 6), spare=st.integers(0, 4))
def test_any_t_shares_recover_the_secret(data: st.DataObject, secret: bytes, threshold: int, spare: int) -> None:
    element = st.integers(0, PRIME - 1)
    rest = data.draw(st.lists(element, min_size=threshold - 1, max_size=threshold - 1))
    size = threshold + spare
    points = data.draw(st.lists(st.integers(1, 2**32), min_size=size, max_size=size, unique=True))
    shares = dict(zip(points, split_secret([int.from_bytes(secret, "big"), *rest], points), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert recover_secret({point: shares[point] for point in chosen}).to_bytes(32, "big") == secret


def test_t_minus_1_shares_fit_every_secret_equally_often() -> None:
    # t = 3 over the field of 7: of all 49 polynomials of a secret, each pair of shares belongs to exactly one
    for secret in range(7):
        pairs = {tuple(split_secret([secret, a, b], [2, 5], prime=7)) for a in range(7) for b in range(7)}
        assert len(pairs) == 49


@pytest.mark.parametrize("points", [[0, 1], [3, 3], [1, 8]])
def test_points_that_give_the_secret_away_or_coincide_are_refused(points: list[int]) -> None:
    with pytest.raises(ValueError, match="different, and none of them 0"):
        split_secret([1, 2], points, prime=7)
    with pytest.raises(ValueError, match="different, and none of them 0"):
        recover_secret(dict.fromkeys(points[:1] if len(set(points)) < 2 else points, 1) | {7: 1}, prime=7)


def test_what_is_no_element_of_the_field_is_refused() -> None:
    with pytest.raises(ValueError, match="elements of the field"):
        split_secret([7, 1], [1, 2], prime=7)
