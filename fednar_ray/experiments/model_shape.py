"""Builds the model of an experiment for the shape of its inputs and the number of outputs."""

from torch import nn

from fednar_ray.config import AnyModel
from fednar_ray.config.model import LanguageModelSettings
from fednar_ray.core.errors import ModelError
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.models import build_model
from fednar_ray.models.tasks import TASKS


def build_experiment_model(settings: AnyModel, federation: FederatedData, seed: int) -> nn.Module:
    """Builds the model for the shape of the inputs and the number of outputs."""
    vocabulary = settings.vocabulary if isinstance(settings, LanguageModelSettings) else 0
    if vocabulary:
        _check_tokens(federation, vocabulary)
    return build_model(settings, federation.shards.examples.x.shape[1:], count_outputs(federation, settings), seed)


def count_outputs(federation: FederatedData, settings: AnyModel | None) -> int:
    """Returns the number of outputs that a model is built with: one if the task needs one, else one per class."""
    vocabulary = settings.vocabulary if isinstance(settings, LanguageModelSettings) else 0
    return TASKS[federation.task].outputs or max(federation.classes, vocabulary)


def _check_tokens(federation: FederatedData, vocabulary: int) -> None:
    for part in (federation.shards.examples, *federation.splits().values()):
        lowest, highest = part.x.min(), part.x.max()
        if lowest < 0 or highest >= vocabulary:
            text = f"tokens run from 0 to {vocabulary - 1}, those of the data from {lowest} to {highest}"
            raise ModelError(f"model.vocabulary: {vocabulary}: {text}")
