"""The interface of a storage: named files that appear whole or not at all."""

from typing import Protocol


class Storage(Protocol):
    """A directory, or a folder of an object store, that holds named files.

    Names are relative to the location, with ``/`` between folders. Every failure raises an OSError.
    """

    @property
    def location(self) -> str:
        """The absolute path or the URI, for messages."""

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces a file. A reader sees the old content or the new one, never a part of it."""

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises FileNotFoundError if there is none."""

    def list_names(self, prefix: str = "") -> list[str]:
        """Returns the names that start with ``prefix``, at any depth, sorted; none if the location does not exist."""

    def delete(self, name: str) -> None:
        """Removes a file. A file that does not exist is not an error."""
