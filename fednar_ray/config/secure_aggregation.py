"""The section ``secure_aggregation``, and what it cannot be combined with."""

from collections.abc import Iterator, Mapping
from math import ceil, log2
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import InitErrorDetails

from fednar_ray.config.algorithm import AlgorithmSettings, RegularizerSettings
from fednar_ray.config.base import Count, Example, Positive, Settings, check_number
from fednar_ray.config.execution import ExecutionSettings
from fednar_ray.config.federation import EvaluationSettings, FederationSettings
from fednar_ray.config.privacy import AdaptiveBoundSettings, PrivacySettings
from fednar_ray.config.problems import build_problem
from fednar_ray.config.robustness import AggregationSettings, AvailabilitySettings, ScreeningSettings

FEWEST_CLIENTS, MOST_CLIENTS = 3, 2**16
PLACE = "secure_aggregation"

_IN_SERIAL = ("execution.placement=serial", "secure_aggregation.clip=5.0")


class SecureAggregationSettings(Settings):
    """Clients mask their updates, so that the driver learns only the sum. For ``execution.silos``, and for clients of
    their own actors."""

    threshold: Annotated[float, BeforeValidator(check_number), Field(gt=0.5, le=1), Example(0.75, *_IN_SERIAL)] = 0.67
    """The share of a round's clients, rounded up to a number t, whose updates must arrive. The others may vanish. Fewer
    than t clients together learn nothing about another one's update."""
    bits: Annotated[int, BeforeValidator(check_number), Field(ge=8, le=30), Example(20, *_IN_SERIAL)] = 24
    """The size of the integers to which updates are rounded, at random and without bias. bits + ⌈log₂ n⌉ may be at most
    32 for n clients per round."""
    clip: Annotated[Positive | None, Example(5.0, "execution.placement=serial")] = None
    """The bound of an update's norm. Longer updates are scaled down. null: that of ``privacy.bound``, or K·η_t·A_t,
    which the regularizer ``fednar`` keeps with ``federation.local_steps``; without these, the clip is required."""
    max_examples: Annotated[Count | None, Example(10_000, *_IN_SERIAL)] = None
    """The largest number of training examples that a client may have, n_max. null: that of the largest client."""
    directory: Annotated[str | None, Field(pattern="^/"), Example("/var/lib/fednar", *_IN_SERIAL)] = None
    """The absolute path of the directory, on each client's own disk, for its keys and for what it has revealed. null:
    ``fednar/secure`` in ``XDG_STATE_HOME``, or in ``~/.local/state``."""


UNKNOWN = SecureAggregationSettings(bits=8, clip=1.0)
"""Stands for a section that is wrong by itself, so that what contradicts any secure aggregation is said with it."""


def find_secure_problems(
    settings: SecureAggregationSettings, sections: Mapping[str, Any]
) -> Iterator[InitErrorDetails]:
    """Finds what contradicts secure aggregation in the sections that are valid by themselves."""
    execution, federation = sections.get("execution"), sections.get("federation")
    if execution is not None:
        yield from _check_execution(execution)
    if federation is not None:
        yield from _check_federation(settings, federation, _count_clients(sections))
        yield from _check_poisson_sample(federation, _count_clients(sections))
    privacy: PrivacySettings | None = sections.get("privacy")
    if privacy is not None and privacy.protects_clients:
        yield from _check_private_sums(settings, privacy)
    elif federation is not None:
        yield from _check_range(settings, federation, sections.get("regularizer"))
    if (algorithm := sections.get("algorithm")) is not None:
        yield from _check_algorithm(algorithm)
    yield from _check_single_updates(sections)


def find_size_problem(bits: int, clients: int) -> str | None:
    """Returns why sums of so many integers are refused; None if they fit into 32 bits."""
    if clients <= MOST_CLIENTS and bits + ceil(log2(max(clients, 1))) <= 32:
        return None
    most = min(MOST_CLIENTS, 2 ** (32 - bits))
    return f"is too large for {clients} clients per round, at most {most}: bits + ⌈log₂ clients⌉ may be at most 32"


def _count_clients(sections: Mapping[str, Any]) -> int | None:
    """Returns the number of clients, as far as the settings tell it."""
    execution, data = sections.get("execution"), sections.get("data")
    if execution is not None and execution.silos is not None:
        return len(execution.silos)
    return None if data is None else data.partition.clients


def _check_execution(execution: ExecutionSettings) -> Iterator[InitErrorDetails]:
    if execution.placement not in ("dedicated", "serial") and execution.silos is None:
        text = "lets one process train several clients; with secure_aggregation use dedicated, or serial to try it"
        yield build_problem(("execution", "placement"), execution.placement, text)
    if execution.vectorize not in ("auto", 1) and execution.silos is None and execution.placement != "dedicated":
        text = "with secure_aggregation each client trains by itself; use 1 or auto"
        yield build_problem(("execution", "vectorize"), execution.vectorize, text)


def _check_federation(
    settings: SecureAggregationSettings, federation: FederationSettings, clients: int | None
) -> Iterator[InitErrorDetails]:
    place, sampled = "federation", federation.clients_per_round
    fewest = f"secure_aggregation needs at least {FEWEST_CLIENTS} clients per round"
    if federation.participation is not None:
        for index, ids in enumerate(federation.participation):
            if len(ids) < FEWEST_CLIENTS:
                yield build_problem((place, "participation", index), list(ids), fewest)
        counts = [len(ids) for ids in federation.participation]
    elif sampled is not None and sampled < FEWEST_CLIENTS:
        yield build_problem((place, "clients_per_round"), sampled, fewest)
        return
    elif sampled is None and clients is not None and clients < FEWEST_CLIENTS:
        yield build_problem((PLACE,), {}, f"{clients} clients are too few; {fewest}")
        return
    else:
        counts = [count for count in (sampled or clients,) if count is not None]
    text = find_size_problem(settings.bits, max(counts, default=1))
    if text is not None:
        yield build_problem((PLACE, "bits"), settings.bits, text)


def _check_poisson_sample(federation: FederationSettings, clients: int | None) -> Iterator[InitErrorDetails]:
    sampled = federation.clients_per_round
    if federation.sampling == "poisson" and sampled is not None and sampled != clients:
        text = "draws only few clients now and then, whose sum would show them; with poisson use null, all clients"
        yield build_problem(("federation", "clients_per_round"), sampled, text)


def _check_private_sums(settings: SecureAggregationSettings, privacy: PrivacySettings) -> Iterator[InitErrorDetails]:
    """Finds what noise in masked sums cannot be combined with: a second bound, and a count of updates."""
    if isinstance(privacy.bound, AdaptiveBoundSettings):
        text = "counts updates by their norms, which secure_aggregation hides; use fixed or fednar"
        yield build_problem(("privacy", "bound", "name"), "adaptive", text)
    if settings.clip is not None and settings is not UNKNOWN:
        text = "is a second bound; remove it: privacy.bound bounds every update"
        yield build_problem((PLACE, "clip"), settings.clip, text)


def _check_range(
    settings: SecureAggregationSettings, federation: FederationSettings, regularizer: RegularizerSettings | None
) -> Iterator[InitErrorDetails]:
    if settings.clip is not None or regularizer is None:
        return
    if regularizer.name != "fednar":
        text = f"is required: regularizer.name {regularizer.name} does not bound updates; set it, or use fednar"
    elif federation.local_steps is None:
        text = "is required with federation.local_epochs; set it, or federation.local_steps in their place"
    else:
        return
    yield build_problem((PLACE, "clip"), None, text)


def _check_algorithm(algorithm: AlgorithmSettings) -> Iterator[InitErrorDetails]:
    name = getattr(algorithm, "name", None)
    if name in ("scaffold", "scaffold+exp", "feddyn"):
        text = "its clients' states would reach the driver, which secure_aggregation prevents; use another preset"
        yield build_problem(("algorithm", "name"), name, text)


def _check_single_updates(sections: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Finds settings that need more of a client than its part of the sum."""
    aggregation: AggregationSettings | None = sections.get("aggregation")
    screening: ScreeningSettings | None = sections.get("screening")
    availability: AvailabilitySettings | None = sections.get("availability")
    evaluation: EvaluationSettings | None = sections.get("evaluation")
    if aggregation is not None and aggregation.name != "mean":
        bounded = aggregation.name == "norm_bound" and sections.get("privacy") is None
        instead = "use mean, with secure_aggregation.clip" if bounded else "use mean"
        text = f"needs single updates, of which secure_aggregation shows only the sum; {instead}"
        yield build_problem(("aggregation", "name"), aggregation.name, text)
    if screening is not None and screening.max_deviation is not None:
        text = "needs the norms of single updates, which secure_aggregation hides; remove it"
        yield build_problem(("screening", "max_deviation"), screening.max_deviation, text)
    if availability is not None and availability != AvailabilitySettings():
        text = "absence is not simulated with secure_aggregation, where silos vanish by themselves; remove it"
        yield build_problem(("availability",), {}, text)
    if evaluation is not None and evaluation.federated:
        text = "shows the metrics of single clients, which secure_aggregation hides; remove it"
        yield build_problem(("evaluation", "federated"), True, text)
