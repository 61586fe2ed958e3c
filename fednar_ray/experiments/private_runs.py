"""Prepares differential privacy: checks that nothing of the clients is released beside the noise, finds the noise."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.config import Experiment
from fednar_ray.config.data import NpzSettings
from fednar_ray.config.private_runs import OF_TRAINING_DATA, describe_delta
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.federated.model_traits import ModelTraits
from fednar_ray.privacy.accounting import Mechanism, compute_spending, import_accounting
from fednar_ray.privacy.keys import build_public_key, draw_key, find_key_file, load_key, save_key
from fednar_ray.privacy.mechanism import ClientPrivacy

if TYPE_CHECKING:
    from fednar_ray.experiments.prepared import Prepared


def build_privacy(
    experiment: Experiment, federation: FederatedData, traits: ModelTraits, algorithm: Algorithm
) -> ClientPrivacy | None:
    """Builds how an experiment protects its clients; None if it does not.

    Raises:
        ConfigError: Something of the data, the model or the algorithm cannot be private, or no noise reaches the
            target. All problems are reported at once.
        BadInput: dp-accounting is not installed.
    """
    settings = experiment.privacy
    if settings is None or not settings.protects_clients:
        return None
    import_accounting()
    clients, rounds = federation.num_clients, experiment.federation.rounds
    expected = experiment.federation.clients_per_round or clients
    mechanism = Mechanism(sampling_probability=expected / clients, delta=settings.delta, rounds=rounds)
    problems = [*_find_client_problems(experiment, federation), *find_data_problems(experiment, federation)]
    problems += [*find_model_problems(traits), *_find_algorithm_problems(algorithm)]
    noise_multiplier = settings.noise_multiplier
    if settings.epsilon is not None:
        try:
            noise_multiplier = mechanism.find_noise_multiplier(settings.epsilon)
        except ValueError as error:
            text = "use a larger one, fewer rounds or a smaller federation.clients_per_round"
            problems.append(f"privacy.epsilon: {settings.epsilon:g} {error}; {text}")
    if noise_multiplier is not None:
        problems += _find_count_noise_problems(experiment, noise_multiplier)
    if problems or noise_multiplier is None:
        raise ConfigError(tuple(problems))
    return ClientPrivacy(
        settings=settings,
        clients=clients,
        expected_clients=expected,
        local_steps=experiment.federation.local_steps,
        noise_multiplier=noise_multiplier,
        mechanism=mechanism,
        spending=compute_spending(mechanism, noise_multiplier),
        key=None if settings.secret else build_public_key(experiment),
    )


def _find_client_problems(experiment: Experiment, federation: FederatedData) -> Iterator[str]:
    settings, clients = experiment.privacy, federation.num_clients
    assert settings is not None
    if settings.delta >= 1 / clients:
        yield f"privacy.delta: {settings.delta:g} {describe_delta(clients)}"
    if federation.metrics_only:
        yield "privacy: the silos' own test examples are evaluated, which costs privacy that is not accounted"


def find_data_problems(experiment: Experiment, federation: FederatedData) -> Iterator[str]:
    """Yields what was computed from the training examples before the run, and what to do about it."""
    data = experiment.data
    if isinstance(data, NpzSettings) and data.normalization is None and federation.transform is not None:
        text = f"without it, the mean and std of the images {OF_TRAINING_DATA}"
        yield f"data.normalization: {text}; give public numbers"
    if isinstance(federation.preprocessing, TablePreprocessing) and federation.preprocessing.schema is not None:
        columns = [each.name for each in federation.preprocessing.schema.columns if each.kind == "category"]
        if columns:
            text = f"the list of their values {OF_TRAINING_DATA}; encode these columns as numbers by a public list"
            yield f"data.features: {', '.join(columns)}: {text}"
    if federation.target_scale is not None:
        yield f"data: the scale of the label {OF_TRAINING_DATA}; use data.standardize=false"


def find_model_problems(traits: ModelTraits) -> Iterator[str]:
    """Yields what a model keeps of the training examples beside its parameters, and what to do about it."""
    if traits.changed_buffers:
        names = ", ".join(traits.changed_buffers[:3])
        yield (
            f"model: keeps running statistics of the clients' examples ({names}), which cannot be private; use a model "
            "without, such as one with group normalization"
        )


def _find_algorithm_problems(algorithm: Algorithm) -> Iterator[str]:
    if algorithm.client.next_state is not None or algorithm.client.shared:
        yield "algorithm: keeps states of the clients, which differential privacy does not protect; use fedavg"


def _find_count_noise_problems(experiment: Experiment, noise_multiplier: float) -> Iterator[str]:
    given = getattr(experiment.privacy and experiment.privacy.bound, "count_noise", None)
    if given is not None and given <= noise_multiplier / 2:
        text = f"should be more than half of the noise multiplier, {noise_multiplier / 2:.4g}"
        yield f"privacy.bound.count_noise: {given:g} {text}: else the count alone costs more than is accounted"


def draw_unsaved_key(prepared: "Prepared") -> "Prepared":
    """Gives a secret run that leaves no files a key that is kept in memory only."""
    return prepared.with_key(draw_key()) if _lacks_key(prepared) else prepared


def _lacks_key(prepared: "Prepared") -> bool:
    """Returns whether a run is secret and has not been given its key."""
    settings = prepared.experiment.privacy
    return settings is not None and settings.secret and prepared.key is None


def open_key(prepared: "Prepared", recorded: str | None) -> "Prepared":
    """Gives a secret run its key: a new one, which is saved, or the recorded one.

    Args:
        prepared: The run.
        recorded: The name of the key that the checkpoint to resume from records; None: the run is new.

    Raises:
        BadInput: The recorded key cannot be read.
        RunFailed: A new key cannot be saved.
    """
    if recorded is not None:
        return prepared.with_key(load_key(recorded))
    if not _lacks_key(prepared):
        return prepared
    key = draw_key()
    save_key(key)
    return prepared.with_key(key)


def keep_key(prepared: "Prepared") -> None:
    """Saves the key of a trial, which needs it once it has a checkpoint. Raises RunFailed if that is impossible."""
    key = prepared.key
    if key is not None and key.name is not None and not find_key_file(key.name).exists():
        save_key(key)


def get_key_name(prepared: "Prepared") -> dict[str, str]:
    """Returns what a checkpoint records of a run's secret key: its name; nothing if it has none."""
    key = prepared.key
    return {} if key is None or key.name is None else {"privacy_key": key.name}
