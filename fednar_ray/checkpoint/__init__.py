"""Checkpoints: named arrays, rows by client, and facts, kept so that a crash at any instant leaves one whole.

The package knows nothing of federated learning.
"""

from fednar_ray.checkpoint.reading import Checkpoint
from fednar_ray.checkpoint.storage import Storage, open_storage
from fednar_ray.checkpoint.store import CheckpointStore, Snapshot
from fednar_ray.checkpoint.writer import BackgroundWriter

__all__ = ["BackgroundWriter", "Checkpoint", "CheckpointStore", "Snapshot", "Storage", "open_storage"]
