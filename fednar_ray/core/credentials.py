"""Finds addresses that contain a password, a key or a token. They are refused, and never repeated in a message.

An address is recorded in many places (run directories, checkpoints, MLflow, messages, process lists), most of which
others can read. Credentials come from a store's own environment variables and files instead.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from fednar_ray.core.errors import BadInput

INSTEAD = (
    "leave it out of the address, which is recorded with the run. An MLflow server takes MLFLOW_TRACKING_USERNAME with "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; PostgreSQL takes PGPASSWORD or ~/.pgpass; MySQL takes "
    "?read_default_file=/home/you/.my.cnf; object stores take AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, or the "
    "cloud's own credentials"
)
_USERINFO = re.compile(
    r"([A-Za-z][A-Za-z0-9.+-]{0,39}):/+(?!\[)"
    r"(?=((?:(?!%3[Aa])[^/?#:]){0,200}+)(?::|%3[Aa])([^@\n]{1,2000}+)@)"  # looks ahead: addresses may nest
)
_PORT_ALONE = re.compile(r"[0-9]*[/?#\s]")  # ``5000/a`` of ``http://host:5000/a@b``
_FILES = ("file", "sqlite")
_DATABASES = ("postgres", "mysql", "mariadb", "mssql", "oracle")
_SECRET_NAME = re.compile(
    r".*(password|passwd|passphrase|secret(key)?|token|apikey|accesskey(id)?|accountkey|privatekey|signature)"
    r"|pass|pwd|sig|sas|key|auth|jwt|bearer"
)
LIMIT_DEPTH = 60  # of nested values; deeper ones are refused elsewhere


def find_secret(text: str) -> str | None:
    """Returns what kind of secret an address in ``text`` contains, without repeating it; None if it has none.

    A user name alone is no secret, and neither is the path of a file that holds one (``passfile``, ``sslkey``).
    """
    if ":/" not in text:
        return None
    words = dict.fromkeys((*text.split(), *map(unquote, text.split())))  # a parameter may hold others, encoded
    return _find_in_userinfo(text) or next(filter(None, map(_find_in_parameters, words)), None)


def _find_in_userinfo(text: str) -> str | None:
    """Finds a password in ``user:password@host``. The user may be an e-mail address, and the colon may be ``%3A``.

    The password may contain a slash that is not percent-encoded, since databases accept it.
    """
    if "@" not in text:
        return None
    for found in _USERINFO.finditer(text):
        kind = found[1].lower().partition("+")[0]
        surely_password = kind.startswith(_DATABASES) and "@" not in found[2]
        if kind not in _FILES and (surely_password or not _PORT_ALONE.match(found[3])):
            return "a password"
    return None


def _find_in_parameters(word: str) -> str | None:
    """Finds a secret among the parameters of an address, ``…?password=…&token=…``, or after its ``#``."""
    _, slashes, rest = word.partition(":/")
    for part in re.split(r"[?&;#]", rest)[1:] if slashes and "=" in rest else ():
        name, equals, value = part.partition("=")
        plain = re.sub(r"[^a-z0-9]", "", unquote(name[:200]).lower())
        if equals and value and _SECRET_NAME.fullmatch(plain):
            return f"a secret, as the parameter {plain[:40]}"
    return None


def check_address(place: str, address: str | None) -> None:
    """Raises BadInput, which names ``place``, if an address contains a secret. Ray's addresses may lack a scheme."""
    if address is None:
        return
    found = find_secret(address if re.match(r"[\w+.-]+:/", address) else f"ray://{address}")
    if found is not None:
        raise BadInput(describe_secret(place, found))


def check_words(words: Iterable[str]) -> None:
    """Raises BadInput if a word of a command line contains a secret."""
    for word in words:
        found = find_secret(word)
        if found is not None:
            name = re.match(r"-{0,2}[A-Za-z_][\w.-]*(?==)", word)
            raise BadInput(describe_secret(name[0] if name else "the command line", found))


def describe_secret(place: str, found: str) -> str:
    """Returns the message that refuses an address with a secret.

    Args:
        place: The setting or command that holds the address.
        found: What ``find_secret`` returned.
    """
    return f"{place}: the address contains {found}; {INSTEAD}"


def find_secrets(values: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields (place, kind of secret) for every text in nested mappings and lists that contains a secret."""
    if isinstance(values, str):
        found = find_secret(values)
        if found is not None:
            yield place, found
    elif len(place) < LIMIT_DEPTH:
        from pydantic import BaseModel  # not at the top: it takes a tenth of a second, and few commands need it

        if isinstance(values, BaseModel):
            yield from find_secrets(dict(values), place)
        elif isinstance(values, Mapping):
            for key, value in values.items():
                named = str(key)
                found = find_secret(named)
                if found is not None:
                    yield (*place, "a key"), found
                else:
                    yield from find_secrets(value, (*place, named))
        elif isinstance(values, list | tuple):
            for index, value in enumerate(values):
                yield from find_secrets(value, (*place, index))
