"""The table of presets: each row combines a client correction with a server optimizer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fednar_ray.algorithms import server_optimizers
from fednar_ray.algorithms.checked_optimizers import add_checks
from fednar_ray.algorithms.client_corrections import ClientCorrection, control_variate, dynamic, plain, proximal
from fednar_ray.algorithms.server_optimizers import (
    ServerOptimizer,
    adaptive,
    extrapolated,
    extrapolated_momentum,
    momentum,
)
from fednar_ray.config import AnyAlgorithm
from fednar_ray.config.algorithm import AdaptiveSettings, MomentsSettings, OwnAlgorithmSettings, ServerLrSettings
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


def _mean(s: ServerLrSettings) -> ServerOptimizer:
    return server_optimizers.mean(s.server_lr)


def _adam(s: MomentsSettings) -> ServerOptimizer:
    return adaptive(s.server_lr, s.beta1, s.beta2, s.epsilon, server_optimizers.adam_moment)


def _yogi(s: MomentsSettings) -> ServerOptimizer:
    return adaptive(s.server_lr, s.beta1, s.beta2, s.epsilon, server_optimizers.yogi_moment)


def _adagrad(s: AdaptiveSettings) -> ServerOptimizer:
    return adaptive(s.server_lr, 0.0, 0.0, s.epsilon, server_optimizers.adagrad_moment)  # β₁ = 0, no β₂


PRESETS: Mapping[str, Callable[[Any], Algorithm]] = {
    "fedavg": lambda s: Algorithm(plain(), _mean(s)),
    "fedprox": lambda s: Algorithm(proximal(s.mu), _mean(s)),
    "scaffold": lambda s: Algorithm(control_variate(), _mean(s)),
    "fedavgm": lambda s: Algorithm(plain(), momentum(s.server_lr, s.beta)),
    "fedadam": lambda s: Algorithm(plain(), _adam(s)),
    "fedadam_li2023": lambda s: Algorithm(plain(), server_optimizers.adam_li2023(s.server_lr)),
    "fedyogi": lambda s: Algorithm(plain(), _yogi(s)),
    "fedadagrad": lambda s: Algorithm(plain(), _adagrad(s)),
    "fedexp": lambda s: Algorithm(plain(), extrapolated()),
    "feddyn": lambda s: Algorithm(dynamic(s.alpha), server_optimizers.dynamic_server(s.alpha), weighted=False),
    "fedprox+exp": lambda s: Algorithm(proximal(s.mu), extrapolated()),
    "scaffold+exp": lambda s: Algorithm(control_variate(), extrapolated()),
    "fedavgm+exp": lambda s: Algorithm(plain(), extrapolated_momentum(s.beta)),
}
"""Each takes the preset's own settings. Names as in Li et al., NeurIPS 2023; ``+exp`` adds FedExP's extrapolation."""


def build_algorithm(settings: AnyAlgorithm) -> Algorithm:
    """Returns the preset that ``settings`` name, or what their function returns.

    Raises:
        ConfigError: The function cannot be imported, fails, or returns no sound Algorithm.
    """
    if not isinstance(settings, OwnAlgorithmSettings):
        return PRESETS[settings.name](settings)
    algorithm = call_by_path(
        "algorithm.function",
        settings.function,
        settings.arguments,
        Algorithm,
        "a fednar_ray.algorithms.presets.Algorithm",
        lambda text: ConfigError((text,)),
    )
    _check_shared_names(algorithm, settings.function)
    return algorithm._replace(server=add_checks(algorithm.server, settings.function))


def _check_shared_names(algorithm: Algorithm, function: str) -> None:
    """Raises ConfigError for a shared vector whose name a checkpoint uses for something else."""
    for name in algorithm.client.shared:
        if not name.isidentifier() or name in ("parameters", "buffers"):
            text = f"shared vector {name!r}: choose another name, of letters, digits and _, not parameters or buffers"
            raise ConfigError((f"algorithm.function: {function}: {text}",))
