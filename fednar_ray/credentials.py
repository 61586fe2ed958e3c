"""Addresses that carry a password, a key or a token: found, named and refused, and never repeated in a message.

An address is recorded in many places (run directories, checkpoints, MLflow, messages, lists of processes), most of
which others can read.  What a store needs to let us in comes from its own variables and files instead.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from pydantic import BaseModel

from fednar_ray.errors import BadInput

INSTEAD = (
    "leave it out of the address, which is recorded with the run: MLFLOW_TRACKING_USERNAME with "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, let in at an MLflow server, PGPASSWORD or ~/.pgpass at "
    "PostgreSQL, read_default_file=/home/me/.my.cnf at MySQL, and AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, or the "
    "cloud's own credentials, at an object store"
)
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9.-]*(?:\+[A-Za-z0-9.-]+)?):/+(\S*)")
_USERINFO = re.compile(r"(?!\[)[^/?#@:]*:([^@]+)@")
_PORT_AND_PATH = re.compile(r"[0-9]*[/?#]")  # ``5000/a`` of ``http://host:5000/a@b``
_FILES = ("file", "sqlite")
_DATABASES = ("postgres", "mysql", "mariadb", "mssql", "oracle")
_SECRET_NAME = re.compile(
    r".*(password|passwd|passphrase|secret(key)?|token|apikey|accesskey(id)?|accountkey|privatekey|signature)"
    r"|pass|pwd|sig|key|auth"
)
LIMIT_DEPTH = 60  # deeper values are refused elsewhere


def secret_in(text: str) -> str | None:
    """What kind of secret an address in ``text`` carries, in words that do not repeat it; None where there is none.

    A user's name alone is no secret, and neither is the path of a file that holds one (``passfile``, ``sslkey``).
    """
    for scheme, rest in _ADDRESS.findall(text):
        found = _in_userinfo(scheme.lower(), rest) or _in_parameters(rest)
        if found is not None:
            return found
    return None


def _in_userinfo(scheme: str, rest: str) -> str | None:
    """user:password@host; a password may hold what would have to be written as %2F, since databases take it so."""
    found = _USERINFO.match(rest)
    if found is None or scheme.partition("+")[0] in _FILES:
        return None
    if _PORT_AND_PATH.match(found[1]) and not scheme.startswith(_DATABASES):
        return None
    return "a password"


def _in_parameters(rest: str) -> str | None:
    """…?password=…&token=…, or the same behind a #."""
    for part in re.split(r"[?&;#]", rest)[1:]:
        name, equals, value = part.partition("=")
        plain = re.sub(r"[^a-z0-9]", "", unquote(name).lower())
        if equals and value and _SECRET_NAME.fullmatch(plain):
            return f"a secret, as the parameter {plain[:40]}"
    return None


def check_address(place: str, address: str | None) -> None:
    """Raises BadInput, which names ``place``, where an address carries a secret; it may lack a scheme, as Ray's do."""
    if address is None:
        return
    found = secret_in(address if re.match(r"[\w+.-]+:/", address) else f"ray://{address}")
    if found is not None:
        raise BadInput(refusal(place, found))


def check_words(words: Iterable[str]) -> None:
    """Raises BadInput where a word of a command line carries a secret."""
    for word in words:
        found = secret_in(word)
        if found is not None:
            name = re.match(r"-{0,2}[A-Za-z_][\w.-]*(?==)", word)
            raise BadInput(refusal(name[0] if name else "the command line", found))


def refusal(place: str, found: str) -> str:
    """The message about a secret that ``secret_in`` found."""
    return f"{place}: the address holds {found}; {INSTEAD}"


def secrets_within(values: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(place, kind of secret) for every text within nested mappings and lists that holds an address with a secret."""
    if isinstance(values, str):
        found = secret_in(values)
        if found is not None:
            yield place, found
    elif len(place) < LIMIT_DEPTH:
        if isinstance(values, BaseModel):
            yield from secrets_within(dict(values), place)
        elif isinstance(values, Mapping):
            for key, value in values.items():
                named = str(key)
                found = secret_in(named)
                if found is not None:
                    yield (*place, "a key"), found
                else:
                    yield from secrets_within(value, (*place, named))
        elif isinstance(values, list | tuple):
            for index, value in enumerate(values):
                yield from secrets_within(value, (*place, index))
