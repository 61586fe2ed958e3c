"""How messages write a client."""

from fednar_ray.core.client_names import are_named, describe_client, describe_clients, name_client, number_clients


def test_a_client_is_written_by_its_name_or_else_by_its_id():
    names = ("north", "south")
    assert describe_client(1, names) == "client south"
    assert describe_client(3) == describe_client(3, number_clients(5)) == describe_client(3, names) == "client 3"
    assert name_client(0, names) == "north"


def test_long_lists_are_cut():
    assert describe_clients((1,), ("north", "south")) == "client south"
    assert describe_clients((1, 0), ("north", "south")) == "clients south, north"
    assert describe_clients(tuple(range(12))) == "clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"


def test_numbers_are_not_names():
    assert not are_named(number_clients(3))
    assert not are_named(())
    assert are_named(("1", "0"))
