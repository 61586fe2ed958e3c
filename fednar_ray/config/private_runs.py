"""Finds what of an experiment contradicts Poisson sampling, or differential privacy of its clients."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import InitErrorDetails

from fednar_ray.config.privacy import FednarBoundSettings, PrivacySettings
from fednar_ray.config.problems import build_problem
from fednar_ray.config.tables import TabularSettings

KEEPS_STATES = "keeps a state of each client, which differential privacy does not protect; use fedavg or another preset"
READS_NORMS = "reads the norms of single updates, which are not noised; use fedavg, fedavgm, fedadam or another preset"
REFUSED_ALGORITHMS: Mapping[str, str] = {
    "scaffold": KEEPS_STATES,
    "scaffold+exp": KEEPS_STATES,
    "feddyn": KEEPS_STATES,
    "fedexp": READS_NORMS,
    "fedprox+exp": READS_NORMS,
    "fedavgm+exp": READS_NORMS,
}
"""The presets that cannot be private, with the reason. The others read only the sum of the updates."""
OF_TRAINING_DATA = "is computed from the training examples, which costs privacy that is not accounted"


def find_poisson_problems(sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Finds what decides who takes part besides independent draws of probability q."""
    federation, availability = sections.get("federation"), sections.get("availability")
    if federation is None or federation.sampling != "poisson":
        return
    text = "decides who takes part, where federation.sampling=poisson draws each client by itself; set only one"
    if federation.participation is not None:
        yield build_problem(("federation", "participation"), "a schedule", text)
    if availability is None:
        return
    if availability.trace is not None:
        yield build_problem(("availability", "trace"), availability.trace, text)
    if availability.on_off is not None:
        yield build_problem(("availability", "on_off"), "spells", text)
    if availability.over_sampling > 1:
        problem = "asks for spare clients, but a Poisson sample has no fixed size; use 1"
        yield build_problem(("availability", "over_sampling"), availability.over_sampling, problem)


def find_privacy_problems(sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Finds what contradicts ``privacy``: what is released beside the noised sum, or depends on who came."""
    privacy: PrivacySettings | None = sections.get("privacy")
    if privacy is None:
        return
    yield from _check_data(sections)
    if privacy.examples is not None:
        yield from _check_examples(sections)
    if privacy.protects_clients:
        yield from _check_sampling(privacy, sections)
        yield from _check_bound(privacy, sections)
        yield from _check_algorithm(sections)
        yield from _check_server(sections)


def _check_examples(sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Finds what contradicts the privacy of examples: clients in one matrix, compiled steps, losses of examples."""
    execution, evaluation = sections.get("execution"), sections.get("evaluation")
    if execution is not None and execution.vectorize not in ("auto", 1):
        text = "trains clients in one matrix, where privacy.examples needs that of a silo's examples; use auto or 1"
        yield build_problem(("execution", "vectorize"), execution.vectorize, text)
    if execution is not None and execution.compile == "on":
        text = "is not possible with privacy.examples; use auto or off"
        yield build_problem(("execution", "compile"), "on", text)
    if evaluation is not None and evaluation.federated:
        text = "evaluates the clients' own examples, which costs privacy that is not accounted; use false"
        yield build_problem(("evaluation", "federated"), True, text)


def _check_sampling(privacy: PrivacySettings, sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    federation, data = sections.get("federation"), sections.get("data")
    if federation is not None and federation.sampling == "uniform":
        text = "is not accounted: the privacy that sampling adds is known for Poisson samples; use poisson"
        yield build_problem(("federation", "sampling"), "uniform", text)
    clients = None if data is None else data.partition.clients
    if clients is not None and privacy.delta >= 1 / clients:
        yield build_problem(("privacy", "delta"), privacy.delta, describe_delta(clients))


def describe_delta(clients: int) -> str:
    """Describes a δ that is too large for N clients, and what would be right."""
    return f"should be below 1/N = {1 / clients:.3g} for {clients} clients, such as {0.1 / clients:.1g}"


def _check_bound(privacy: PrivacySettings, sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    if not isinstance(privacy.bound, FednarBoundSettings):
        return
    place, regularizer, federation = ("privacy", "bound", "name"), sections.get("regularizer"), sections["federation"]
    if regularizer is not None and regularizer.name != "fednar":
        others = "fixed or adaptive" if sections.get("secure_aggregation") is None else "fixed"
        text = f"holds for the steps of regularizer.name=fednar only, not of {regularizer.name}; use {others}"
        yield build_problem(place, "fednar", text)
    if federation is not None and federation.local_epochs is not None:
        text = "needs federation.local_steps: with local_epochs, K depends on the sizes of the clients"
        yield build_problem(place, "fednar", text)


def _check_algorithm(sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    name = str(getattr(sections.get("algorithm"), "name", None))
    if name in REFUSED_ALGORITHMS:
        yield build_problem(("algorithm", "name"), name, f"cannot be private: it {REFUSED_ALGORITHMS[name]}")


def _check_server(sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    screening, aggregation = sections.get("screening"), sections.get("aggregation")
    execution, evaluation = sections.get("execution"), sections.get("evaluation")
    if screening is not None and screening.max_deviation is not None:
        text = "compares clients with each other; remove it: privacy.bound bounds every update"
        yield build_problem(("screening", "max_deviation"), screening.max_deviation, text)
    if aggregation is not None and aggregation.name != "mean":
        text = "is not private; use mean: privacy.bound bounds every update"
        yield build_problem(("aggregation", "name"), aggregation.name, text)
    if execution is not None and execution.min_clients > 1:
        text = "would end a run depending on who took part, which is not private; remove it"
        yield build_problem(("execution", "min_clients"), execution.min_clients, text)
    if execution is not None and execution.silos is not None:
        text = "are evaluated on examples of their own, which costs privacy that is not accounted; read the files here"
        yield build_problem(("execution", "silos"), ", ".join(execution.silos), text)
    if evaluation is not None and evaluation.federated:
        text = "evaluates the clients' own examples, which costs privacy that is not accounted; use false"
        yield build_problem(("evaluation", "federated"), True, text)


def _check_data(sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    data, model = sections.get("data"), sections.get("model")
    if isinstance(data, TabularSettings):
        if data.standardize:
            text = f"{OF_TRAINING_DATA}; use false, and scale the columns by constants that are public"
            yield build_problem(("data", "standardize"), True, text)
        if data.missing == "mean":
            yield build_problem(("data", "missing"), "mean", f"{OF_TRAINING_DATA}; use drop or refuse")
    if model is not None and model.class_weights == "balanced":
        text = f"{OF_TRAINING_DATA}; give one public number per class"
        yield build_problem(("model", "class_weights"), "balanced", text)
