"""Checks that data, model and algorithm fit secure aggregation, before Ray starts."""

from collections.abc import Iterator

from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.config.secure_aggregation import FEWEST_CLIENTS, SecureAggregationSettings, find_size_problem
from fednar_ray.core.client_names import describe_client
from fednar_ray.core.errors import ConfigError, format_names
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.federated.model_traits import ModelTraits


def check_secure_aggregation(
    settings: SecureAggregationSettings,
    federation: FederatedData,
    algorithm: Algorithm,
    traits: ModelTraits,
    sampled: int,
) -> None:
    """Raises ConfigError, with everything that only data, model or a user's own algorithm show to be wrong.

    Args:
        settings: The section.
        federation: The data.
        algorithm: The algorithm, which may be the user's own.
        traits: What is known of the model.
        sampled: The number of clients per round.
    """
    problems = tuple(_find_problems(settings, federation, algorithm, traits, sampled))
    if problems:
        raise ConfigError(problems)


def _find_problems(
    settings: SecureAggregationSettings,
    federation: FederatedData,
    algorithm: Algorithm,
    traits: ModelTraits,
    sampled: int,
) -> Iterator[str]:
    sizes, client, buffers = federation.shards.sizes, algorithm.client, traits.changed_buffers
    sampled = min(sampled, int((sizes > 0).sum()))
    if sampled < FEWEST_CLIENTS:
        yield f"secure_aggregation: {sampled} clients per round are too few; at least {FEWEST_CLIENTS} are needed"
    elif (text := find_size_problem(settings.bits, sampled)) is not None:
        yield f"secure_aggregation.bits: {settings.bits} {text}"
    most = settings.max_examples or int(sizes.max())
    if algorithm.weighted and sizes.max() > most:
        who = describe_client(int(sizes.argmax()), federation.client_names)
        yield f"secure_aggregation.max_examples: {most} is less than the {sizes.max()} examples of {who}"
    if algorithm.weighted and most * sampled >= 2**32:
        yield f"secure_aggregation.max_examples: {most} of {sampled} clients do not fit into 32 bits"
    if client.next_state is not None or client.shared:
        yield "algorithm.function: its clients' states would reach the driver, which secure_aggregation prevents"
    if buffers:
        text = "are running statistics, which secure_aggregation does not mask; use a model without, as with GroupNorm"
        yield f"model: {format_names(buffers)} {text}"
