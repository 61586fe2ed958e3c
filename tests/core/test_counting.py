"""Counts are written with their nouns: 1 round, 2 rounds."""

from fednar_ray.core.counting import format_count


def test_only_one_is_singular() -> None:
    assert [format_count(n, "client") for n in (0, 1, 2)] == ["0 clients", "1 client", "2 clients"]
    assert [format_count(n, "round") for n in (1.0, 8.5)] == ["1 round", "8.5 rounds"]
