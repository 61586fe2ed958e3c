"""Checkpoints of named arrays, one row per client, and facts. A crash at any moment leaves a complete one.

This package knows nothing of federated learning.
"""

from fednar_ray.checkpoint.locations import open_storage
from fednar_ray.checkpoint.reading import Checkpoint
from fednar_ray.checkpoint.storage import Storage
from fednar_ray.checkpoint.store import CheckpointStore, Snapshot
from fednar_ray.checkpoint.writer import BackgroundWriter

__all__ = ["BackgroundWriter", "Checkpoint", "CheckpointStore", "Snapshot", "Storage", "open_storage"]
