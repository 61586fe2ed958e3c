"""Saves checkpoints so that a crash at any moment leaves a complete one, and verifies them when they are loaded.

The files of a checkpoint are written first and its manifest last. Only then are older manifests deleted, and after
them the files that no manifest names anymore.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fednar_ray.checkpoint.arrays import Array, RowVector, encode, encode_row
from fednar_ray.checkpoint.manifest import (
    MANIFEST,
    OWN,
    Damaged,
    File,
    Manifest,
    OtherFormat,
    Row,
    Segment,
    cut_history,
)
from fednar_ray.checkpoint.parallel import for_each
from fednar_ray.checkpoint.reading import Checkpoint, read_checkpoint, read_manifest
from fednar_ray.checkpoint.storage import Storage
from fednar_ray.core.errors import CheckpointError

__all__ = ["Checkpoint", "CheckpointStore", "Snapshot"]

log = logging.getLogger("fednar_ray")


def _release_nothing() -> None:
    """Does nothing: such a snapshot holds no resources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state at the end of a round. The arrays in it must not be modified afterwards."""

    next_round: int
    arrays: Mapping[str, Array]
    rows: Mapping[int, int]  # client id → version: the round that last changed the row; one version has one content
    read_row: Callable[[int], RowVector]  # client id → [d], as of this snapshot; called for one client at a time
    facts: Mapping[str, Any]  # values that JSON can hold; floats need not be finite
    history: tuple[str, ...]  # one line of JSON per finished round
    release: Callable[[], None] = _release_nothing  # called once, when the snapshot is not read anymore


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        storage: Where they are.
        keep: The number of checkpoints to keep; older ones are deleted.
    """

    def __init__(self, storage: Storage, keep: int) -> None:
        self.keep = keep  # may differ from the run that is resumed
        self._storage = storage
        self._known: dict[str, Manifest] = {}  # manifests in the storage, by name
        self._damaged: set[str] = set()  # names of manifests whose checkpoints ``load`` found damaged
        self._newest: Manifest | None = None  # the manifest that was last loaded or saved
        self._history: tuple[str, ...] = ()  # its lines

    def save(self, snapshot: Snapshot) -> None:
        """Writes a checkpoint, and deletes older ones beyond ``keep`` and all those of later rounds.

        Files that the checkpoint last loaded or saved already has are not written again. The snapshot is released
        in any case.

        Raises:
            CheckpointError: The storage fails. The earlier checkpoints are unchanged.
        """
        try:
            manifest = self._write(snapshot)
        except OSError as error:
            with suppress(OSError):
                self._known.clear()  # the manifest may have been written nevertheless
                names = self._storage.list_names()
                self._delete_unneeded(names, self._read_manifests(names).values())
            raise CheckpointError(self._describe_failure(snapshot.next_round, error)) from error
        finally:
            snapshot.release()
        self._newest, self._history = manifest, snapshot.history
        self._known[manifest.name] = manifest
        self._damaged.discard(manifest.name)
        try:
            self._delete_old(manifest.next_round)
        except OSError as error:
            log.warning("superseded checkpoints in %s could not be deleted: %s", self._storage.location, error)

    def load(self) -> Checkpoint | None:
        """Returns the newest intact checkpoint; None if there is no checkpoint. A warning names each damaged one.

        Raises:
            CheckpointError: The storage fails, or all checkpoints are damaged, or the newest intact one has a format
                that this version does not know. An older one is not used in its place.
        """
        location = self._storage.location
        try:
            names = _list_manifest_names(self._storage.list_names("round-"))
        except OSError as error:
            raise CheckpointError(f"the checkpoints in {location} cannot be listed: {error}") from error
        problems: list[str] = []
        for name in reversed(names):
            try:
                manifest = read_manifest(self._storage, name)
                checkpoint = read_checkpoint(self._storage, manifest)
            except Damaged as damage:
                log.warning("checkpoint %s in %s cannot be used: %s", name, location, damage)
                self._damaged.add(name)
                problems.append(str(damage))
            except OtherFormat as other:
                raise CheckpointError(f"{location}: {other}; resume with the version that wrote it") from other
            else:
                self._newest, self._history = manifest, checkpoint.history
                return checkpoint
        if problems:
            raise CheckpointError(f"every checkpoint in {location} is damaged: {'; '.join(problems)}")
        return None

    def _write(self, snapshot: Snapshot) -> Manifest:
        base = self._newest
        if base is not None and base.next_round > snapshot.next_round:
            base = None  # it is from rounds that are trained again
        manifest = Manifest(
            next_round=snapshot.next_round,
            arrays=self._put(f"round-{snapshot.next_round:08d}", "safetensors", encode(snapshot.arrays)),
            history=self._write_history(snapshot.history, base),
            rows=self._write_rows(snapshot, base),
            facts=dict(snapshot.facts),
        )
        self._storage.write(manifest.name, manifest.encode())
        return manifest

    def _write_history(self, lines: tuple[str, ...], base: Manifest | None) -> list[Segment]:
        written = {(s.start, s.stop): s for s in base.history} if base is not None else {}
        segments = []
        for start, stop in cut_history(len(lines)):
            segment = written.get((start, stop))
            if segment is None or lines[start:stop] != self._history[start:stop]:
                data = "".join(f"{line}\n" for line in lines[start:stop]).encode()
                file = self._put(f"history-{start:08d}-{stop:08d}", "jsonl", data)
                segment = Segment(start=start, stop=stop, file=file)
            segments.append(segment)
        return segments

    def _write_rows(self, snapshot: Snapshot, base: Manifest | None) -> list[Row]:
        written = {row.client_id: row for row in base.rows} if base is not None else {}
        rows = {i: written[i] for i, v in snapshot.rows.items() if i in written and written[i].version == v}

        reading = threading.Lock()

        def put(client_id: int) -> None:
            with reading:
                vector = snapshot.read_row(client_id)
            version = snapshot.rows[client_id]
            file = self._put(f"rows/{client_id}-{version}", "safetensors", encode_row(vector))
            rows[client_id] = Row(client_id=client_id, version=version, file=file)

        for_each(put, [client_id for client_id in snapshot.rows if client_id not in rows])
        return [rows[client_id] for client_id in sorted(rows)]

    def _put(self, stem: str, suffix: str, data: bytes) -> File:
        file = File.of(stem, suffix, data)
        self._storage.write(file.name, data)
        return file

    def _describe_failure(self, next_round: int, error: OSError) -> str:
        what = f"the checkpoint of round {next_round} could not be written to {self._storage.location}: {error}"
        if self._newest is None:
            return what
        return f"{what}; the checkpoint of round {self._newest.next_round} before it is intact"

    def _delete_old(self, newest_round: int) -> None:
        names = self._storage.list_names()
        manifests = self._read_manifests(names)
        included = [name for name, m in manifests.items() if m.next_round <= newest_round and name not in self._damaged]
        self._known = {name: manifests[name] for name in included[-self.keep :]}
        for name in _list_manifest_names(names):
            if name not in self._known:
                self._storage.delete(name)
        self._delete_unneeded(names, self._known.values())

    def _delete_unneeded(self, names: Iterable[str], manifests: Iterable[Manifest]) -> None:
        """Deletes the files among ``names`` that none of ``manifests`` needs."""
        needed = {file.name for manifest in manifests for file in manifest.list_files()}
        for_each(self._storage.delete, [name for name in names if OWN.fullmatch(name) and name not in needed])

    def _read_manifests(self, names: Iterable[str]) -> dict[str, Manifest]:
        """Returns the manifests among ``names`` that can be read, oldest first."""
        manifests = {}
        for name in _list_manifest_names(names):
            with suppress(Damaged, OtherFormat):
                known = self._known.get(name)
                manifests[name] = known if known is not None else Manifest.decode(name, self._storage.read(name))
        return manifests


def _list_manifest_names(names: Iterable[str]) -> list[str]:
    """Returns the names of manifests among ``names``, oldest first."""
    return sorted((name for name in names if MANIFEST.fullmatch(name)), key=lambda name: (len(name), name))
