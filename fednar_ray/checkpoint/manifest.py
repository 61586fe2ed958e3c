"""The manifest of a checkpoint: sealed JSON that names every file it needs, with size and SHA-256.

A file's name carries the beginning of its own SHA-256, so a name never stands for two contents, and what an older
manifest names is never overwritten with anything else.  Whether a checkpoint is there is one question: its manifest.
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
    """A file is not what was written; the text names it and says what is wrong."""


class OtherFormat(Exception):
    """A manifest is whole, and of another format than this version knows; the text names it and the format."""


class Part(BaseModel):
    """Base of what a manifest holds: frozen, with nothing unknown and nothing converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(Part):
    """A file that the checkpoint needs."""

    name: Annotated[str, Field(pattern=f"^{OWN.pattern}$")]
    size_bytes: NonNegative
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, stem: str, suffix: str, data: bytes) -> Self:
        """The file that will hold ``data``."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(name=f"{stem}-{digest[:16]}.{suffix}", size_bytes=len(data), sha256=digest)

    def verify(self, data: bytes) -> bytes:
        """``data``. Raises Damaged where it is not what was written."""
        if len(data) != self.size_bytes:
            raise Damaged(f"{self.name} has {len(data)} bytes instead of {self.size_bytes}")
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise Damaged(f"{self.name} does not hold what was written: its SHA-256 is another")
        return data


class Segment(Part):
    """Lines ``start`` to ``stop`` of the history."""

    start: NonNegative
    stop: NonNegative
    file: File


class Row(Part):
    """A client's row, as the round ``version`` left it."""

    client_id: NonNegative
    version: NonNegative
    file: File


class Manifest(Part):
    """All there is to a checkpoint."""

    format: Literal["checkpoint 1"] = "checkpoint 1"
    next_round: NonNegative
    arrays: File
    history: list[Segment]
    rows: list[Row]
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """The manifest's own file."""
        return f"round-{self.next_round:08d}.json"

    def files(self) -> Iterator[File]:
        """Every file that the checkpoint needs, its manifest aside."""
        yield self.arrays
        yield from (segment.file for segment in self.history)
        yield from (row.file for row in self.rows)

    def encode(self) -> bytes:
        """As a file. Floats are written so that they read back the same; NaN and ±Infinity as Python's json does."""
        return _sealed(json.dumps(self.model_dump()).encode()[1:])

    @classmethod
    def decode(cls, name: str, data: bytes) -> Self:
        """The manifest in the file ``name``.

        Raises Damaged where it is not one, or not that round's, and OtherFormat where another version wrote it.
        """
        if data != _sealed(data[len(_sealed(b"")) :]):
            raise Damaged(f"{name} does not hold what was written: its checksum is another")
        try:
            content = json.loads(data)
            written_as = content.get("format")
            if isinstance(written_as, str) and written_as != FORMAT and FORMATS.fullmatch(written_as):
                raise OtherFormat(f"{name} is of the format {written_as!r}, and this version reads {FORMAT!r}")
            manifest = cls.model_validate({k: v for k, v in content.items() if k != "sha256"})
        except ValidationError as error:
            first = error.errors()[0]
            raise Damaged(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{name} is not JSON: {error}") from error
        if manifest.name != name:
            raise Damaged(f"{name} is the manifest of round {manifest.next_round}")
        return manifest


def _sealed(body: bytes) -> bytes:
    """JSON that begins with the SHA-256 of all that follows it; ``body`` is an object without its first brace."""
    return b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'", ' + body


def spans(lines: int) -> Iterator[tuple[int, int]]:
    """Cut a history by the decimal digits of its length: 1230 lines are 1000, 2 of 100 and 3 of 10.

    Grown line by line, there are at most nine spans a digit, and no line is in more than one span a digit over
    time: so the cost of writing only new spans grows as n·log n.
    """
    start = 0
    for size in (10**power for power in reversed(range(len(str(lines))))):
        while lines - start >= size:
            yield start, start + size
            start += size
