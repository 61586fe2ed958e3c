"""FedNAR on Ray: federated learning with one bound for gradient and weight decay.

Li et al., *FedNAR: Federated Optimization with Normalized Annealing Regularization*, NeurIPS 2023.
"""

import logging
import warnings
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fednar_ray.algorithms.torch_optimizer import FedNARSGD
    from fednar_ray.config import Experiment, load
    from fednar_ray.core.callbacks import RoundCallback, RunInfo, StopRun
    from fednar_ray.core.errors import (
        BadInput,
        CapacityError,
        CheckpointError,
        ConfigError,
        DataError,
        DeviceError,
        FednarError,
        ModelError,
        RayUnavailable,
        RoundAborted,
        RunFailed,
        StorageUnavailable,
        TrackingUnavailable,
    )
    from fednar_ray.core.reports import RoundRecord, RoundReport
    from fednar_ray.data.federation import Federation
    from fednar_ray.execution.session import RaySession
    from fednar_ray.execution.shared_session import shutdown
    from fednar_ray.experiments.compare import compare
    from fednar_ray.experiments.comparison.result import Comparison
    from fednar_ray.experiments.early_stopping import EarlyStopping
    from fednar_ray.experiments.iter_rounds import iter_rounds
    from fednar_ray.experiments.predict import predict
    from fednar_ray.experiments.result import Result
    from fednar_ray.experiments.run import run
    from fednar_ray.experiments.suggestion import ClipBoundSuggestion, suggest
    from fednar_ray.models.weights import load_model
    from fednar_ray.tracking.stop_record import Stop
    from fednar_ray.tuning.search_result import SearchResult
    from fednar_ray.tuning.tune import tune

__all__ = [
    "BadInput",
    "CapacityError",
    "CheckpointError",
    "ClipBoundSuggestion",
    "Comparison",
    "ConfigError",
    "DataError",
    "DeviceError",
    "EarlyStopping",
    "Experiment",
    "FedNARSGD",
    "Federation",
    "FednarError",
    "ModelError",
    "RaySession",
    "RayUnavailable",
    "Result",
    "RoundAborted",
    "RoundCallback",
    "RoundRecord",
    "RoundReport",
    "RunFailed",
    "RunInfo",
    "SearchResult",
    "Stop",
    "StopRun",
    "StorageUnavailable",
    "TrackingUnavailable",
    "compare",
    "iter_rounds",
    "load",
    "load_model",
    "predict",
    "run",
    "shutdown",
    "suggest",
    "tune",
]

_HOMES = {
    "algorithms.torch_optimizer": ("FedNARSGD",),
    "config": ("Experiment", "load"),
    "data.federation": ("Federation",),
    "core.callbacks": ("RoundCallback", "RunInfo", "StopRun"),
    "core.errors": (
        "BadInput",
        "CapacityError",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "DeviceError",
        "FednarError",
        "ModelError",
        "RayUnavailable",
        "RoundAborted",
        "RunFailed",
        "StorageUnavailable",
        "TrackingUnavailable",
    ),
    "execution.session": ("RaySession",),
    "execution.shared_session": ("shutdown",),
    "experiments.compare": ("compare",),
    "experiments.comparison.result": ("Comparison",),
    "experiments.early_stopping": ("EarlyStopping",),
    "experiments.predict": ("predict",),
    "experiments.result": ("Result",),
    "experiments.run": ("run",),
    "experiments.suggestion": ("ClipBoundSuggestion", "suggest"),
    "core.reports": ("RoundRecord", "RoundReport"),
    "models.weights": ("load_model",),
    "experiments.iter_rounds": ("iter_rounds",),
    "tracking.stop_record": ("Stop",),
    "tuning.search_result": ("SearchResult",),
    "tuning.tune": ("tune",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: actors need no MLflow, and ``fednar --help`` no torch."""
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(_import_quietly(f"fednar_ray.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'fednar_ray' has no attribute {name!r}")


def _import_quietly(module: str) -> ModuleType:
    """Imports a module without the advice of Ray and tqdm to install ipywidgets, which nothing here uses."""
    logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        return import_module(module)


def __dir__() -> list[str]:
    return sorted(__all__)
