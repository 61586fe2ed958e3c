"""Texts that are probably meant as one are found, and named with the clients that write them so."""

import pytest

from fednar_ray.core.spelling import describe_alike, find_alike


@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        (["sick", "Sick", "healthy"], [("sick", "Sick")]),
        (["type 1", "Type  1", "TYPE1", "type 2"], [("type 1", "Type  1", "TYPE1")]),
        (["a", "b", "a"], []),
        (["Straße", "STRASSE"], [("Straße", "STRASSE")]),
    ],
)
def test_texts_are_alike_if_only_capitals_and_blanks_differ(texts: list[str], groups: list[tuple[str, ...]]) -> None:
    assert find_alike(texts) == groups


def test_clients_and_their_rows_are_named() -> None:
    (line,) = describe_alike("ill", {"sick": {"north": 3, "south": 1}, "Sick": {"south": 2}, "well": {"north": 9}})
    assert line.startswith(
        "column ill: 'sick' (3 rows of north, 1 row of south) and 'Sick' (2 rows of south) differ only"
    )
    assert describe_alike("ward", {"A": {}, "a": {}})[0].startswith("column ward: 'A' and 'a' differ")
