"""Reads a checkpoint, and verifies every file of it before any of it is used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fednar_ray.checkpoint.arrays import Array, RowVector, decode, decode_row
from fednar_ray.checkpoint.manifest import Damaged, Manifest, Row, Segment
from fednar_ray.checkpoint.parallel import for_each
from fednar_ray.checkpoint.storage import Storage
from fednar_ray.core.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    name: str  # the location and the manifest's name
    next_round: int
    arrays: Mapping[str, Array]  # new and writable
    rows: Mapping[int, int]  # client id → version
    read_row: Callable[[int], RowVector]  # client id → [d], read and verified again; raises CheckpointError
    facts: Mapping[str, Any]
    history: tuple[str, ...]


def read_manifest(storage: Storage, name: str) -> Manifest:
    """Reads the manifest in the file ``name``. Raises Damaged or OtherFormat."""
    return Manifest.decode(name, _read(storage, name))


def read_checkpoint(storage: Storage, manifest: Manifest) -> Checkpoint:
    """Reads the checkpoint of a manifest. Rows are verified but not kept in memory. Raises Damaged."""
    arrays = decode(manifest.arrays, _read(storage, manifest.arrays.name))
    history = tuple(line for segment in manifest.history for line in _read_lines(storage, segment))
    for_each(lambda row: _read_row(storage, row), manifest.rows)
    rows = {row.client_id: row for row in manifest.rows}

    def read_row(client_id: int) -> RowVector:
        try:
            return _read_row(storage, rows[client_id])
        except Damaged as damage:
            raise CheckpointError(
                f"the checkpoint in {storage.location} was damaged after it was loaded: {damage}"
            ) from damage

    return Checkpoint(
        name=f"{storage.location.rstrip('/')}/{manifest.name}",
        next_round=manifest.next_round,
        arrays=arrays,
        rows={client_id: row.version for client_id, row in rows.items()},
        read_row=read_row,
        facts=manifest.facts,
        history=history,
    )


def _read_lines(storage: Storage, segment: Segment) -> list[str]:
    name = segment.file.name
    try:
        lines = segment.file.verify(_read(storage, name)).decode().split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise Damaged(f"{name} is not text: {error}") from error
    if len(lines) != segment.stop - segment.start:
        raise Damaged(f"{name} has {len(lines)} lines instead of {segment.stop - segment.start}")
    return lines


def _read_row(storage: Storage, row: Row) -> RowVector:
    return decode_row(row.file, _read(storage, row.file.name))


def _read(storage: Storage, name: str) -> bytes:
    try:
        return storage.read(name)
    except FileNotFoundError as error:
        raise Damaged(f"{name} is missing") from error
    except OSError as error:
        raise Damaged(f"{name} cannot be read: {error}") from error
