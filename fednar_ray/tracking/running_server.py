"""Finds out what listens at an address: MLflow's server of a certain store, of another one, or something else."""

from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import urlopen

from fednar_ray.core.errors import TrackingUnavailable
from fednar_ray.tracking.store import Store, raise_as_unavailable

ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """What listens at an address.

    Attributes:
        what: What it is, in words.
        shows_store: Whether it is MLflow's server of the store that was asked about.
    """

    what: str
    shows_store: bool = False


def find_listener(address: str, store: Store) -> Listener:
    """Finds out what listens at ``address``, ``http://HOST:PORT``, and whether it shows ``store``."""
    try:
        with urlopen(f"{address}/version", timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - http, as the caller writes
            version, server = answer.read(100).decode(errors="replace").strip(), answer.headers.get("Server", "")
    except HTTPError as error:
        return Listener(what=_describe_server(error.headers.get("Server", "")))
    except (OSError, HTTPException):
        return Listener(what="a program that is no web server")
    if not version[:1].isdigit():  # an MLflow server answers with its version and nothing else
        return Listener(what=_describe_server(server))
    with suppress(TrackingUnavailable):
        if _list_experiments(Store(address)) == _list_experiments(store):
            return Listener(what=f"MLflow {version} with this store", shows_store=True)
    return Listener(what=f"MLflow {version} with another store")


def _describe_server(name: str) -> str:
    return f"another web server ({name.strip()})" if name.strip() else "another web server"


def _list_experiments(store: Store) -> Set[tuple[str, str, int, str]]:
    """Lists what tells the experiments of two stores apart, of the newest ones: when they were created, and where."""
    with raise_as_unavailable(store.uri):
        found = store.client.search_experiments()
    return {(each.experiment_id, each.name, each.creation_time, each.artifact_location) for each in found}
