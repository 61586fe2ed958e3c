"""Prepares the differential privacy of single examples: the noise of each silo, and what it spends."""

from collections.abc import Iterator
from functools import partial

from fednar_ray.config import Experiment
from fednar_ray.config.privacy import ExampleSettings
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.stages import announce
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.experiments.private_runs import find_data_problems, find_model_problems
from fednar_ray.federated.model_traits import ModelTraits
from fednar_ray.privacy.accounting import Mechanism, compute_spending, import_accounting
from fednar_ray.privacy.examples import ExamplePrivacy, compute_sampling_probability
from fednar_ray.privacy.keys import build_public_key

ALONE_BECAUSE = "the gradients of a silo's single examples are clipped"


def build_example_privacy(
    experiment: Experiment, federation: FederatedData, traits: ModelTraits
) -> ExamplePrivacy | None:
    """Builds how an experiment protects the examples of its silos; None if it does not.

    The number of a silo's examples counts as public.

    Raises:
        ConfigError: Something of the data or the model cannot be private, or no noise reaches the target. All problems
            but the last are reported at once, before the noise is looked for, which takes seconds.
        BadInput: dp-accounting is not installed.
    """
    privacy = experiment.privacy
    if privacy is None or privacy.examples is None:
        return None
    import_accounting()
    settings, workload = privacy.examples, experiment.federation.workload
    sizes = federation.shards.sizes
    steps = workload.steps(sizes)
    problems = [*_find_delta_problems(settings, federation), *find_model_problems(traits)]
    problems += [*find_data_problems(experiment, federation), *_find_random_problems(federation, traits)]
    if problems:
        raise ConfigError(tuple(problems))
    announce("finding the noise of the silos")
    silos = {i: (int(size), int(taken)) for i, (size, taken) in enumerate(zip(sizes, steps, strict=True)) if size}
    build = partial(_build_mechanism, settings, workload.batch_size, experiment.federation.rounds)
    try:
        noise = {i: _choose_noise(settings, build(*silo)) for i, silo in silos.items()}
    except ValueError as error:
        text = "use a larger one, fewer rounds or local steps, or a smaller federation.batch_size"
        raise ConfigError((f"privacy.examples.epsilon: {settings.epsilon:g} {error}; {text}",)) from error
    return ExamplePrivacy(
        norm=settings.norm,
        batch_size=workload.batch_size,
        noise_multipliers=noise,
        key=None if privacy.secret else build_public_key(experiment),
        spending={i: compute_spending(build(*silo), noise[i], silo[1]) for i, silo in silos.items()},
        simulated=not privacy.secret,
    )


def _build_mechanism(settings: ExampleSettings, batch_size: int, rounds: int, examples: int, steps: int) -> Mechanism:
    """Returns what is accounted for a silo of n examples that takes K local steps in each of T rounds."""
    probability = compute_sampling_probability(batch_size, examples)
    return Mechanism(sampling_probability=probability, delta=settings.delta, rounds=rounds * steps)


def _choose_noise(settings: ExampleSettings, mechanism: Mechanism) -> float:
    if settings.noise_multiplier is not None:
        return settings.noise_multiplier
    assert settings.epsilon is not None
    return mechanism.find_noise_multiplier(settings.epsilon)


def _find_delta_problems(settings: ExampleSettings, federation: FederatedData) -> Iterator[str]:
    largest = int(federation.shards.sizes.max())
    if settings.delta >= 1 / largest:
        text = f"should be below 1/n = {1 / largest:.3g}, as the largest silo has {largest} examples"
        yield f"privacy.examples.delta: {settings.delta:g} {text}; use for example {0.1 / largest:.1g}"


def _find_random_problems(federation: FederatedData, traits: ModelTraits) -> Iterator[str]:
    """Yields what is drawn for an example by its place in the batch, which one example more would change for others."""
    text = "draws random numbers for places in a batch, so one example more changes the gradients of others; remove it"
    if traits.draws:
        yield f"model: a layer, such as dropout, {text}"
    if federation.transform is not None and federation.transform.augmentation is not None:
        yield f"data.augmentation: it {text}"
