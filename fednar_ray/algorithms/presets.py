"""The table of presets: a client correction with a server optimizer, one row each."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fednar_ray.algorithms import server_optimizers as server_optimizers
from fednar_ray.algorithms.checked_rules import checked_rule
from fednar_ray.algorithms.client_corrections import ClientCorrection, control_variate, dynamic, plain, proximal
from fednar_ray.algorithms.server_optimizers import (
    ServerOptimizer,
    adaptive,
    extrapolated,
    extrapolated_momentum,
    momentum,
)
from fednar_ray.config import AlgorithmSettings
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.import_path import call_by_path


class Algorithm(NamedTuple):
    """A federated optimizer.

    Attributes:
        client: Its half on the client.
        server: Its half on the server.
        weighted: Whether a client's weight w_i is proportional to its examples n_i, or the same for all.
    """

    client: ClientCorrection
    server: ServerOptimizer
    weighted: bool = True


def _mean(s: AlgorithmSettings) -> ServerOptimizer:
    return server_optimizers.mean(_set(s.server_lr))


def _adam(s: AlgorithmSettings) -> ServerOptimizer:
    moment = server_optimizers.adam_moment
    return adaptive(_set(s.server_lr), _set(s.beta1), _set(s.beta2), _set(s.epsilon), moment)


def _yogi(s: AlgorithmSettings) -> ServerOptimizer:
    moment = server_optimizers.yogi_moment
    return adaptive(_set(s.server_lr), _set(s.beta1), _set(s.beta2), _set(s.epsilon), moment)


def _adagrad(s: AlgorithmSettings) -> ServerOptimizer:
    return adaptive(_set(s.server_lr), 0.0, 0.0, _set(s.epsilon), server_optimizers.adagrad_moment)  # β₁ = 0, no β₂


def _set(value: float | None) -> float:
    """A setting that the preset reads, so the configuration has filled it."""
    assert value is not None
    return value


PRESETS: Mapping[str, Callable[[AlgorithmSettings], Algorithm]] = {
    "fedavg": lambda s: Algorithm(plain(), _mean(s)),
    "fedprox": lambda s: Algorithm(proximal(_set(s.mu)), _mean(s)),
    "scaffold": lambda s: Algorithm(control_variate(), _mean(s)),
    "fedavgm": lambda s: Algorithm(plain(), momentum(_set(s.server_lr), _set(s.beta))),
    "fedadam": lambda s: Algorithm(plain(), _adam(s)),
    "fedadam_li2023": lambda s: Algorithm(plain(), server_optimizers.adam_li2023(_set(s.server_lr))),
    "fedyogi": lambda s: Algorithm(plain(), _yogi(s)),
    "fedadagrad": lambda s: Algorithm(plain(), _adagrad(s)),
    "fedexp": lambda s: Algorithm(plain(), extrapolated()),
    "feddyn": lambda s: Algorithm(
        dynamic(_set(s.alpha)), server_optimizers.dynamic_server(_set(s.alpha)), weighted=False
    ),
    "fedprox+exp": lambda s: Algorithm(proximal(_set(s.mu)), extrapolated()),
    "scaffold+exp": lambda s: Algorithm(control_variate(), extrapolated()),
    "fedavgm+exp": lambda s: Algorithm(plain(), extrapolated_momentum(_set(s.beta))),
}
"""Names as in Li et al., NeurIPS 2023; ``+exp`` adds FedExP's extrapolation."""


def build_algorithm(settings: AlgorithmSettings) -> Algorithm:
    """The preset that ``settings`` name, or what their function returns. Raises ConfigError where it returns none."""
    if settings.name is not None:
        return PRESETS[settings.name](settings)
    assert settings.function is not None
    algorithm = call_by_path(
        "algorithm.function",
        settings.function,
        settings.arguments or {},
        Algorithm,
        "a fednar_ray.algorithms.presets.Algorithm",
        lambda text: ConfigError((text,)),
    )
    return algorithm._replace(server=checked_rule(algorithm.server, settings.function))
