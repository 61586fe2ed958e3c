"""Validated, immutable settings; YAML files; overrides by dotted key."""

from fednar_ray.config.algorithm import PRESET_SETTINGS, AnyAlgorithm, read_algorithm
from fednar_ray.config.comparison import CompareSettings
from fednar_ray.config.data import SOURCE_SETTINGS, AnyData, read_data
from fednar_ray.config.document import Document, build_variant
from fednar_ray.config.domain import Domain
from fednar_ray.config.dotted_keys import flatten_chosen_settings, flatten_settings
from fednar_ray.config.execution import ExecutionSettings, SiloSettings
from fednar_ray.config.experiment import Experiment
from fednar_ray.config.loading import (
    apply_overrides,
    build_document,
    compute_digest,
    dump,
    load,
    load_document,
    load_embedded,
)
from fednar_ray.config.model import MODEL_SETTINGS, AnyModel, read_model
from fednar_ray.config.paths import is_relative
from fednar_ray.config.privacy import PrivacySettings
from fednar_ray.config.recording import CheckpointSettings
from fednar_ray.config.robustness import AggregationSettings, AttackSettings, AvailabilitySettings, ScreeningSettings
from fednar_ray.config.search import SearchSettings
from fednar_ray.config.secure_aggregation import SecureAggregationSettings
from fednar_ray.config.source_base import TASK_NAMES, DataSettings, PartitionSettings

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
    "PrivacySettings",
    "ScreeningSettings",
    "SearchSettings",
    "SecureAggregationSettings",
    "SiloSettings",
    "apply_overrides",
    "build_document",
    "build_variant",
    "compute_digest",
    "dump",
    "flatten_chosen_settings",
    "flatten_settings",
    "is_relative",
    "load",
    "load_document",
    "load_embedded",
    "read_algorithm",
    "read_data",
    "read_model",
]
