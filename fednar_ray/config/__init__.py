"""Validated, immutable settings; YAML files; overrides by dotted key."""

from fednar_ray.config.algorithm import PRESET_SETTINGS, AnyAlgorithm, read_algorithm
from fednar_ray.config.comparison import CompareSettings
from fednar_ray.config.data import SOURCE_SETTINGS, TASK_NAMES, AnyData, DataSettings, PartitionSettings, read_data
from fednar_ray.config.execution import ExecutionSettings, SiloSettings
from fednar_ray.config.experiment import Experiment
from fednar_ray.config.loading import (
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
from fednar_ray.config.model import MODEL_SETTINGS, AnyModel, read_model
from fednar_ray.config.recording import CheckpointSettings
from fednar_ray.config.robustness import AggregationSettings, AttackSettings, AvailabilitySettings, ScreeningSettings
from fednar_ray.config.search import Domain, SearchSettings

__all__ = [
    "MODEL_SETTINGS",
    "PRESET_SETTINGS",
    "SOURCE_SETTINGS",
    "TASK_NAMES",
    "AggregationSettings",
    "AnyAlgorithm",
    "AnyData",
    "AnyModel",
    "AttackSettings",
    "AvailabilitySettings",
    "CheckpointSettings",
    "CompareSettings",
    "DataSettings",
    "Document",
    "Domain",
    "ExecutionSettings",
    "Experiment",
    "PartitionSettings",
    "ScreeningSettings",
    "SearchSettings",
    "SiloSettings",
    "digest",
    "dotted",
    "dump",
    "embedded",
    "is_relative",
    "load",
    "load_document",
    "read_algorithm",
    "read_data",
    "read_model",
    "varied",
    "with_overrides",
]
