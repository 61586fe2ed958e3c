"""Shamir's secret sharing over a prime field: any t of n shares give the secret, fewer say nothing about it.

Source: A. Shamir, "How to share a secret", Communications of the ACM 22 (11), 1979.
"""

from collections.abc import Mapping, Sequence

PRIME = 2**521 - 1
"""A Mersenne prime, so that a secret of 32 bytes is one element of the field."""

SHARE_BYTES = 66
"""The size of a share: 521 bits."""


def split_secret(coefficients: Sequence[int], points: Sequence[int], prime: int = PRIME) -> list[int]:
    """Returns the shares of a secret: the values of a polynomial.

    Args:
        coefficients: The secret, and t − 1 coefficients that nobody can guess.
        points: Where the polynomial is evaluated: one number per share, all different and none 0.
        prime: The order of the field.

    Raises:
        ValueError: A coefficient is not an element of the field, or two points are equal in it, or one is 0.
    """
    if not all(0 <= coefficient < prime for coefficient in coefficients):
        raise ValueError("the secret and the coefficients should be elements of the field")
    _check_points(points, prime)
    return [_evaluate(coefficients, point, prime) for point in points]


def recover_secret(shares: Mapping[int, int], prime: int = PRIME) -> int:
    """Returns the secret: the value at 0 of the polynomial through the shares.

    Args:
        shares: Point → share. With fewer than t shares, or shares of different secrets, the result is meaningless.
        prime: The order of the field.

    Raises:
        ValueError: Two points are equal in the field, or one is 0.
    """
    points = list(shares)
    weights = compute_weights(points, prime)
    return sum(weight * shares[point] for weight, point in zip(weights, points, strict=True)) % prime


def compute_weights(points: Sequence[int], prime: int = PRIME) -> list[int]:
    """Returns Lagrange's weights at 0: the secret is the sum of the weights times the shares.

    Raises:
        ValueError: Two points are equal in the field, or one is 0.
    """
    _check_points(points, prime)
    weights = []
    for point in points:
        numerator = denominator = 1
        for other in points:
            if other != point:
                numerator = numerator * other % prime
                denominator = denominator * (other - point) % prime
        weights.append(numerator * pow(denominator, -1, prime) % prime)
    return weights


def _evaluate(coefficients: Sequence[int], point: int, prime: int) -> int:
    """Evaluates a polynomial by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % prime
    return value


def _check_points(points: Sequence[int], prime: int) -> None:
    reduced = [point % prime for point in points]
    if 0 in reduced or len(set(reduced)) < len(reduced):
        raise ValueError("the points should be different, and none of them 0")
