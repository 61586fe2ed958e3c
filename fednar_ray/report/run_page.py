"""Builds the page of a run: what came out, what it took, curves, sensitivity, clients, and how it was made."""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

from fednar_ray.config import Experiment, dump
from fednar_ray.core.client_names import ClientNames, are_named, name_client
from fednar_ray.core.counting import format_count
from fednar_ray.core.metric_names import format_metric_value
from fednar_ray.core.private_metrics import format_epsilon
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.bound_section import build_bound_section
from fednar_ray.report.effort import format_bytes, format_cost, format_seconds, measure_effort
from fednar_ray.report.facts import RunFacts, list_facts
from fednar_ray.report.page import Column, KeyFigure, Made, Page, Table, link_to_mlflow
from fednar_ray.report.run_charts import draw_run_charts
from fednar_ray.report.run_plots import Measure, find_last, find_measure

CONFIDENCE = 0.95
SHOWN_CLIENTS = 50
CLIENT_FIGURES = {"mean": "of the mean client", "worst_decile": "of the worst tenth of clients"}
"""The metrics over clients, by the end of their names, in words."""


def build_run_page(
    name: str,
    history: Sequence[RoundRecord],
    facts: RunFacts,
    *,
    experiment: Experiment | None = None,
    primary: str | None = None,
    url: str | None = None,
    client_names: ClientNames = (),
    alerts: Sequence[object] = (),
) -> str:
    """Returns the HTML of a run's page.

    Args:
        name: The name of the run.
        history: Its rounds, at least one.
        facts: How it was made, as far as that is known.
        experiment: Its settings; None: not known.
        primary: Its primary metric; see ``find_measure``.
        url: Its page in MLflow; None if MLflow is a file.
        client_names: The clients' names, by client id.
        alerts: What a person should look at, with ``name``, ``round_index`` and ``message``.
    """
    measure = find_measure(history, primary)
    page = Page(
        kind="run",
        title=name,
        answer=list(describe_run(history, measure, facts)),
        made=describe_making(name, facts, experiment, url),
        content={
            "key": list(_list_key_figures(history, measure, facts, experiment)),
            "alerts": alerts,
            "figures": list(draw_run_charts(history, measure)),
            "bound": build_bound_section(history, experiment.regularizer.name if experiment is not None else ""),
            "clients": _tabulate_clients(history, facts, client_names),
        },
    )
    return page.render()


def describe_run(history: Sequence[RoundRecord], measure: Measure, facts: RunFacts) -> Iterator[str]:
    """Yields what came out of a run, with its uncertainty where that is known."""
    rounds, name = format_count(history[-1].round_index + 1, "round"), measure.name.replace("_", " ")
    values = {r.round_index: r.metrics[measure.metric] for r in history if measure.metric in r.metrics}
    if not values:
        yield f"Trained {rounds}; nothing was evaluated on test examples."
        return
    last = values[max(values)]
    text = f"After {rounds} the model reaches a test {name} of {format_metric_value(measure.name, last)}"
    if not np.isfinite(last):
        yield f"After {rounds} the test {name} is not a finite number: the training diverged."
        return
    if measure.name == "accuracy" and facts.test_examples:
        low, high = _compute_share_interval(last, facts.test_examples)
        yield f"{text} (95 % interval {low:.3f} to {high:.3f}, from {facts.test_examples:,} test examples)."
    else:
        yield f"{text}."
    best = (max if measure.higher_is_better else min)(values, key=lambda round_index: values[round_index])
    if values[best] != last:
        yield (
            f"Its best value, {format_metric_value(measure.name, values[best])}, was in round {best + 1}. "
            "One run shows one seed: fednar compare says whether a difference is more than luck."
        )


def _compute_share_interval(share: float, examples: int) -> tuple[float, float]:
    """Computes Wilson's 95 % interval of a share of examples."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    center, spread = share + z**2 / (2 * examples), share * (1 - share) / examples + (z / (2 * examples)) ** 2
    low, high = ((center + side * math.sqrt(spread)) / (1 + z**2 / examples) for side in (-z, z))
    return max(low, 0.0), min(high, 1.0)


def _list_key_figures(
    history: Sequence[RoundRecord], measure: Measure, facts: RunFacts, experiment: Experiment | None
) -> Iterator[KeyFigure]:
    effort = measure_effort(history)
    value = find_last(history, measure.metric)
    if value is not None:
        yield KeyFigure(f"test {measure.name.replace('_', ' ')}", format_metric_value(measure.name, value))
    for name, of in CLIENT_FIGURES.items():
        over_clients = find_last(history, f"client_{measure.name}_{name}")
        if over_clients is not None:
            yield KeyFigure(f"{measure.name} {of}", format_metric_value(measure.name, over_clients), "own examples")
    yield KeyFigure("rounds", f"{history[-1].round_index + 1:,}")
    spent = format_epsilon(history[-1].metrics)
    if spent:
        privacy = None if experiment is None else experiment.privacy
        yield KeyFigure("privacy spent", spent, "" if privacy is None else f"at δ = {privacy.describe_deltas()}")
    yield KeyFigure("sent and received", format_bytes(effort.bytes_sent), "as in a real federation")
    yield KeyFigure("time of all rounds", format_seconds(effort.seconds))
    if effort.client_seconds:
        yield KeyFigure("training, all clients", format_seconds(effort.client_seconds))
    prices = experiment.report.prices if experiment is not None else None
    if prices is not None:
        cost = effort.compute_cost(prices, gpus=facts.gpus)
        yield KeyFigure("cost", format_cost(cost), "at the given prices")
    clipped = [r.metrics["clip_fraction"] for r in history if "clip_fraction" in r.metrics]
    if clipped:
        yield KeyFigure("steps that were clipped", f"{100 * float(np.mean(clipped)):.0f} %")


def _tabulate_clients(history: Sequence[RoundRecord], facts: RunFacts, names: ClientNames) -> Table | None:
    """Returns one row per client, those with most examples first; None if nothing is known of any."""
    clients = max(len(facts.label_counts), len(names))
    if not clients:
        return None
    totals = [sum(row) for row in facts.label_counts] or [0] * clients
    order = sorted(range(clients), key=lambda i: (-(totals[i] if i < len(totals) else 0), i))
    columns = [Column("client", not are_named(names))]
    classes = facts.class_names if 1 < len(facts.class_names) <= 6 else ()
    if facts.label_counts:
        columns += [Column("examples"), *(Column(each) for each in classes)]
    columns += [Column("rounds taken part"), Column("length of its steps"), Column("updates left out")]
    rows = []
    for client_id in order[:SHOWN_CLIENTS]:
        row = [name_client(client_id, names)]
        if facts.label_counts:
            counts = facts.label_counts[client_id] if client_id < len(facts.label_counts) else ()
            row += [f"{sum(counts):,}" if counts else "–"]
            row += [f"{counts[k]:,}" if k < len(counts) else "–" for k in range(len(classes))]
        norms = [r.step_norms[client_id] for r in history if client_id in r.step_norms]
        row += [
            f"{sum(client_id in r.client_ids for r in history):,}",
            f"{float(np.mean(norms)):.3g}" if norms else "–",
            f"{sum(client_id in r.exclusions for r in history):,}",
        ]
        rows.append(row)
    note = f"The {SHOWN_CLIENTS} largest of {clients:,} clients." if clients > SHOWN_CLIENTS else ""
    return Table(columns, rows, note=note)


def describe_making(name: str, facts: RunFacts, experiment: Experiment | None, url: str | None) -> Made:
    """Returns how a run or comparison was made, as rows of a table and all its settings."""
    return Made(
        rows=[link_to_mlflow(name, url), *list_facts(facts)],
        settings="" if experiment is None else dump(experiment),
        finished=facts.finished.replace("T", " ")[:16],
    )
