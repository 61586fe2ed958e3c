"""The manifest of a checkpoint: JSON with a checksum that names every file of the checkpoint, with size and SHA-256.

The name of a file contains the start of its own SHA-256. Files with the same name therefore have the same content, and
a newer checkpoint never overwrites a file that an older one needs. A checkpoint exists exactly if its manifest exists.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FORMAT, FORMATS = "checkpoint 1", re.compile(r"checkpoint [0-9]{1,9}")
MANIFEST = re.compile(r"round-[0-9]{8,}\.json")
OWN = re.compile(r"(round-[0-9]+|history-[0-9]+-[0-9]+|rows/[0-9]+-[0-9]+)-[0-9a-f]{16}\.(safetensors|jsonl)")
NonNegative = Annotated[int, Field(ge=0)]


class Damaged(Exception):
    """A file is not what was written; the text names the file and what is wrong."""


class OtherFormat(Exception):
    """A manifest is intact, but has a format that this version does not know; the text names both."""


class Part(BaseModel):
    """Base class of the parts of a manifest: frozen, without unknown fields, and without conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(Part):
    """A file of the checkpoint."""

    name: Annotated[str, Field(pattern=f"^{OWN.pattern}$")]
    size_bytes: NonNegative
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, stem: str, suffix: str, data: bytes) -> Self:
        """Describes the file that will hold ``data``."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(name=f"{stem}-{digest[:16]}.{suffix}", size_bytes=len(data), sha256=digest)

    def verify(self, data: bytes) -> bytes:
        """Returns ``data`` unchanged. Raises Damaged if it is not what was written."""
        if len(data) != self.size_bytes:
            raise Damaged(f"{self.name} has {len(data)} bytes instead of {self.size_bytes}")
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise Damaged(f"{self.name} does not hold what was written: its SHA-256 differs")
        return data


class Segment(Part):
    """Lines ``start`` to ``stop`` (exclusive) of the history."""

    start: NonNegative
    stop: NonNegative
    file: File


class Row(Part):
    """The row of one client, as the round ``version`` left it."""

    client_id: NonNegative
    version: NonNegative
    file: File


class Manifest(Part):
    """Everything that a checkpoint consists of."""

    format: Literal["checkpoint 1"] = "checkpoint 1"
    next_round: NonNegative
    arrays: File
    history: list[Segment]
    rows: list[Row]
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the manifest's own file."""
        return f"round-{self.next_round:08d}.json"

    def list_files(self) -> Iterator[File]:
        """Yields every file of the checkpoint, except the manifest."""
        yield self.arrays
        yield from (segment.file for segment in self.history)
        yield from (row.file for row in self.rows)

    def encode(self) -> bytes:
        """Returns the content of the file. Floats survive exactly, NaN and ±Infinity included."""
        return _seal(json.dumps(self.model_dump()).encode()[1:])

    @classmethod
    def decode(cls, name: str, data: bytes) -> Self:
        """Returns the manifest in the file ``name``.

        Raises:
            Damaged: The file is not a manifest, or is the manifest of another round.
            OtherFormat: Another version wrote it.
        """
        if data != _seal(data[len(_seal(b"")) :]):
            raise Damaged(f"{name} does not hold what was written: its checksum differs")
        try:
            content = json.loads(data)
            written_as = content.get("format")
            if isinstance(written_as, str) and written_as != FORMAT and FORMATS.fullmatch(written_as):
                raise OtherFormat(f"{name} has the format {written_as!r}, but this version reads {FORMAT!r}")
            manifest = cls.model_validate({k: v for k, v in content.items() if k != "sha256"})
        except ValidationError as error:
            first = error.errors()[0]
            raise Damaged(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{name} is not JSON: {error}") from error
        if manifest.name != name:
            raise Damaged(f"{name} is the manifest of round {manifest.next_round}")
        return manifest


def parse_manifest_name(name: str) -> int | None:
    """Returns the round in the name of a manifest; None if the name is not a manifest's."""
    return int(name[len("round-") : -len(".json")]) if MANIFEST.fullmatch(name) else None


def _seal(body: bytes) -> bytes:
    """Returns JSON that starts with the SHA-256 of the rest; ``body`` is a JSON object without its first brace."""
    return b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'", ' + body


def cut_history(lines: int) -> Iterator[tuple[int, int]]:
    """Cuts a history by the decimal digits of its length: 1230 lines are 1000, 2 of 100 and 3 of 10.

    There are at most nine spans per digit. While a history grows, each line is written at most once per digit, so the
    cost of writing only the new spans grows as n·log n.
    """
    start = 0
    for size in (10**power for power in reversed(range(len(str(lines))))):
        while lines - start >= size:
            yield start, start + size
            start += size
