"""Opens the storage at a location: a path, or a URI."""

import os
from pathlib import Path

from fednar_ray.checkpoint.local import LocalStorage
from fednar_ray.checkpoint.storage import Storage
from fednar_ray.core.credentials import check_address


def open_storage(location: str) -> Storage:
    """Opens a path as a directory, and a URI as a file system of pyarrow or fsspec. Creates nothing.

    Raises:
        StorageUnavailable: The location cannot hold files, or does not answer.
        BadInput: The address contains a password or a key.
    """
    check_address("the location of the checkpoints", location)
    if "://" in location:
        from fednar_ray.checkpoint.remote import open_remote  # importing pyarrow takes a while

        return open_remote(location)
    return LocalStorage(Path(location))


def build_storage_location(location: str, name: str) -> str:
    """Returns the location of ``name`` below a path or a URI; the query of a URI stays at its end.

    Examples:
        >>> build_storage_location("s3://bucket/runs?region=eu", "digits-7f3a09c1")
        's3://bucket/runs/digits-7f3a09c1?region=eu'
    """
    if "://" not in location:
        return os.path.join(location, name)
    address, question, query = location.partition("?")
    return f"{address.rstrip('/')}/{name}{question}{query}"
