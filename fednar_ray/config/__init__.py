"""Validated, immutable settings; YAML files; dotted overrides."""

from fednar_ray.config.experiment import Experiment
from fednar_ray.config.files import Document, dump, embedded, load, load_document
from fednar_ray.config.settings import (
    PRESET_SETTINGS,
    AlgorithmSettings,
    CompareSettings,
    DataSettings,
    ExecutionSettings,
    ModelSettings,
    PartitionSettings,
)

__all__ = [
    "PRESET_SETTINGS",
    "AlgorithmSettings",
    "CompareSettings",
    "DataSettings",
    "Document",
    "ExecutionSettings",
    "Experiment",
    "ModelSettings",
    "PartitionSettings",
    "dump",
    "embedded",
    "load",
    "load_document",
]
