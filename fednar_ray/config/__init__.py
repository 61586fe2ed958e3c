"""Validated, immutable settings; YAML files; dotted overrides."""

from fednar_ray.config.experiment import Experiment
from fednar_ray.config.files import (
    Document,
    digest,
    dotted,
    dump,
    embedded,
    is_relative,
    load,
    load_document,
    varied,
    with_overrides,
)
from fednar_ray.config.search import Domain, SearchSettings
from fednar_ray.config.settings import (
    PRESET_SETTINGS,
    AggregationSettings,
    AlgorithmSettings,
    AvailabilitySettings,
    CheckpointSettings,
    CompareSettings,
    CorruptionSettings,
    DataSettings,
    ExecutionSettings,
    ModelSettings,
    PartitionSettings,
    ScreeningSettings,
)

__all__ = [
    "PRESET_SETTINGS",
    "AggregationSettings",
    "AlgorithmSettings",
    "AvailabilitySettings",
    "CheckpointSettings",
    "CompareSettings",
    "CorruptionSettings",
    "DataSettings",
    "Document",
    "Domain",
    "ExecutionSettings",
    "Experiment",
    "ModelSettings",
    "PartitionSettings",
    "ScreeningSettings",
    "SearchSettings",
    "digest",
    "dotted",
    "dump",
    "embedded",
    "is_relative",
    "load",
    "load_document",
    "varied",
    "with_overrides",
]
