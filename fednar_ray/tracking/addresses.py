"""Remembers the addresses of the tracking stores that this user has recorded runs in.

They are stored in the user's state directory, outside every project, so that a run directory from a stranger cannot
add one.
"""

import os
import shlex
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.core.store_uris import make_uri_absolute
from fednar_ray.tracking.file_writes import replace_file

ADDRESSES_FILE = "tracking_addresses"


def get_addresses_file() -> Path:
    """Returns the file of confirmed addresses, one per line: in ``XDG_STATE_HOME``, else ``~/.local/state``."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "fednar" / ADDRESSES_FILE


def confirm(uri: str) -> None:
    """Remembers that this user records runs in a store. Does nothing if there is no home directory."""
    file, address = get_addresses_file(), _drop_credentials(uri)
    known = _read_confirmed()
    if address in known or "\n" in address:
        return
    with suppress(OSError, RunFailed):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(file, "".join(f"{each}\n" for each in (*known, address)))


def check_confirmed(uri: str, directory: Path) -> None:
    """Raises BadInput unless the settings name the store of a run directory, or this user has recorded runs in it."""
    import mlflow

    address = _drop_credentials(make_uri_absolute(uri))
    settings = _drop_credentials(make_uri_absolute(mlflow.get_tracking_uri()))
    if address != settings and address not in _read_confirmed():
        raise BadInput(
            f"{directory} names the tracking store {address}, which is not the one of your settings ({settings}), and "
            f"no run of yours was recorded there; if it is right, confirm it with --uri {shlex.quote(address)}"
        )


def _read_confirmed() -> tuple[str, ...]:
    try:
        return tuple(get_addresses_file().read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return ()


def _drop_credentials(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri
