"""How a client is written wherever one is shown: by its name if it has one, otherwise by its id."""

from collections.abc import Sequence

ClientNames = Sequence[str]
"""The clients' names, by client id. Clients without names are called "0", "1", …, or the sequence is empty."""

LISTED = 10  # a message lists at most this many clients


def number_clients(clients: int) -> tuple[str, ...]:
    """Returns the names of clients that were given without names: "0", "1", …."""
    return tuple(map(str, range(clients)))


def are_named(names: ClientNames) -> bool:
    """Returns whether the names say more than the ids do."""
    return tuple(names) != number_clients(len(names))


def name_client(client_id: int, names: ClientNames = ()) -> str:
    """Returns a client's name; its id as text if it has none."""
    return names[client_id] if client_id < len(names) else str(client_id)


def describe_client(client_id: int, names: ClientNames = ()) -> str:
    """Returns "client north", or "client 3" if the client has no name."""
    return f"client {name_client(client_id, names)}"


def list_clients(client_ids: Sequence[int], names: ClientNames = ()) -> str:
    """Returns "north, south", with an ellipsis after the first ten."""
    shown = ", ".join(name_client(client_id, names) for client_id in client_ids[:LISTED])
    return shown + (", …" if len(client_ids) > LISTED else "")


def describe_clients(client_ids: Sequence[int], names: ClientNames = ()) -> str:
    """Returns "client north", "clients north, south", or the first clients of a longer list."""
    return f"client{'s' if len(client_ids) > 1 else ''} {list_clients(client_ids, names)}"
