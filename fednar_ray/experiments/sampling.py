"""Which clients an experiment samples: the checks of its settings against the data, and their availability."""

from fednar_ray.config import Experiment
from fednar_ray.core.client_names import are_named, describe_clients
from fednar_ray.core.errors import ConfigError
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.federated.client_sampling import Availability, load_trace


def check_sampling(experiment: Experiment, federation: FederatedData) -> None:
    """Checks that the settings name clients that the data have. Raises ConfigError, which lists every problem."""
    settings, sizes = experiment.federation, federation.shards.sizes
    present, problems = int((sizes > 0).sum()), []
    sampled = settings.clients_per_round
    if settings.participation is None and sampled is not None and sampled > present:
        problems.append(f"federation.clients_per_round: {sampled} is more than the clients with examples ({present})")
    for index, ids in enumerate(settings.participation or ()):
        place, names = f"federation.participation.{index}", federation.client_names
        unknown = [i for i in ids if i >= len(sizes)]
        if unknown:
            first, last = (f"{i} ({names[i]})" if are_named(names) else str(i) for i in (0, len(sizes) - 1))
            problems.append(f"{place}: {unknown}: no such clients; ids run from {first} to {last}")
        empty = [i for i in ids if i < len(sizes) and not sizes[i]]
        if empty:
            text = "has no examples; leave it out" if len(empty) == 1 else "have no examples; leave them out"
            problems.append(f"{place}: {empty}: {describe_clients(empty, names)} {text}")
    if problems:
        raise ConfigError(tuple(problems))


def build_availability(experiment: Experiment, federation: FederatedData) -> Availability:
    """Builds what decides which of the sampled clients return. Raises BadInput if its trace cannot be read."""
    settings = experiment.availability
    rounds, clients = experiment.federation.rounds, federation.num_clients
    trace = None if settings.trace is None else load_trace(settings.trace, clients, rounds)
    sizes, workload = federation.shards.sizes, experiment.federation.workload
    return Availability(
        settings,
        seed=experiment.seed,
        sizes=sizes,
        workload=workload,
        trace=trace,
        poisson=experiment.federation.sampling == "poisson",
    )
