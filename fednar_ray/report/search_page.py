"""Builds the page of a search: what it found, what a wrong setting costs, and all trials."""

from collections.abc import Iterator, Mapping, Sequence
from math import nan
from typing import Any

from fednar_ray.config import yaml_text
from fednar_ray.config.recording import Prices
from fednar_ray.core.private_metrics import describe_spending
from fednar_ray.report.axes import build_plain_label, format_metric, format_searched_value, name_metric
from fednar_ray.report.effort import Effort, format_bytes, format_cost, format_seconds
from fednar_ray.report.facts import RunFacts, list_facts
from fednar_ray.report.page import Column, KeyFigure, Made, Page, PageFigure, Table, link_to_mlflow
from fednar_ray.report.search_answer import SearchOutcome, describe_search, explain_baseline
from fednar_ray.report.search_results import SearchFacts, rank_trials
from fednar_ray.report.sensitivity import FACTORS, Degradation, Sensitivity
from fednar_ray.tracking.mlflow_names import TOTALS
from fednar_ray.tracking.searches import SearchRecord


def build_search_page(
    record: SearchRecord,
    facts: SearchFacts,
    falls: Sensitivity,
    facts_of_best: RunFacts,
    url: str | None,
    *,
    curves: PageFigure | None,
    figures: Sequence[PageFigure],
    missing: Sequence[str],
) -> str:
    """Returns the HTML of the page.

    Args:
        record: The search.
        facts: Its summary.
        falls: What wrong settings cost.
        facts_of_best: How the best experiment was trained again.
        url: The page of the search in MLflow; None if MLflow is a file.
        curves: The best trial and the baseline over rounds; None if nothing was evaluated.
        figures: Wider figures of all trials.
        missing: Why other figures are not shown.
    """
    page = Page(
        kind="search",
        title=record.name,
        answer=list(describe_search(SearchOutcome.of_record(record))),
        made=_describe_making(record, facts_of_best, url),
        content={
            "key": list(_list_key_figures(record, facts, facts_of_best)),
            "curves": curves,
            "baseline": None if record.baseline_changes is None else explain_baseline(record.baseline_changes),
            "best": _tabulate_best_values(record, facts),
            "sensitivity": describe_sensitivity(record, falls),
            "falls": _tabulate_falls(record, falls) if falls.known else None,
            "falls_notes": list(_explain_falls(record, falls)),
            "wide_figures": figures,
            "missing": missing,
            "trials": _tabulate_trials(record),
        },
    )
    return page.render()


def describe_sensitivity(record: SearchRecord, falls: Sensitivity) -> list[str]:
    """Returns the sensitivity as sentences, one per factor, or the one that the trials do not tell it."""
    if not falls.known:
        return [
            "These trials do not tell: no two of those that ran all rounds differ in one setting alone, and by 3 or 10 "
            "times. A grid over clip bound, weight decay and learning rate has such trials."
        ]
    sentences = []
    for factor in FACTORS:
        losses = [(name, falls.average(name, factor)) for name in falls.regularizers]
        known = [f"{name} {format_degradation(record, loss)}" for name, loss in losses if loss is not None]
        if known:
            what = f"{'points of ' if _is_in_points(record) else ''}{name_metric(record)}"
            sentences.append(f"With one setting off by {factor} times, the loss in {what}: {', '.join(known)}.")
    return sentences


def format_degradation(record: SearchRecord, fall: float | None) -> str:
    """Formats a degradation of the metric; that of an accuracy is given in points (hundredths)."""
    if fall is None:
        return "–"
    return f"{100 * fall:.1f}" if _is_in_points(record) else format_metric(fall)


def _is_in_points(record: SearchRecord) -> bool:
    return "accuracy" in record.metric


def _list_key_figures(record: SearchRecord, facts: SearchFacts, made: RunFacts) -> Iterator[KeyFigure]:
    metric = name_metric(record)
    test = None if record.test_metric is None else record.test_metric.replace("_", " ")
    direction = "highest is best" if record.mode == "max" else "lowest is best"
    yield KeyFigure(f"best {metric}", format_metric(facts.best_value), direction)
    if test is not None:
        baseline = f"baseline: {format_metric(facts.baseline_test_value)}"
        yield KeyFigure(f"{test} of the best", format_metric(facts.best_test_value), baseline)
    counts = ", ".join(f"{count} {status}" for status, count in facts.statuses.items() if count)
    yield KeyFigure("trials", f"{len(record.trials):,}", counts)
    yield KeyFigure("rounds trained", f"{facts.rounds_trained:,}", _describe_saving(facts))
    spent = describe_spending([trial.privacy for trial in record.trials], record.seeds)
    if spent is not None:
        figure, _, advice = spent.removeprefix("privacy: ").partition(" spent by ")
        yield KeyFigure("privacy spent by all trials", figure, advice.partition("; ")[2])
    effort = measure_search(record)
    if effort is not None:
        yield KeyFigure("sent and received", format_bytes(effort.bytes_sent), "in all trials")
        yield KeyFigure("training, all clients", format_seconds(effort.client_seconds), "in all trials")
        prices = _find_prices(record)
        if prices is not None:
            yield KeyFigure("cost", format_cost(effort.compute_cost(prices, gpus=made.gpus)), "at the given prices")


def measure_search(record: SearchRecord) -> Effort | None:
    """Measures what all trials took; None if it is not recorded."""
    known = [trial.totals for trial in record.trials if trial.totals]
    if not known:
        return None
    sent, trained = (record.seeds * sum(totals[name] for totals in known) for name in TOTALS)
    rounds = record.seeds * sum(trial.rounds for trial in record.trials)
    return Effort(rounds=rounds, bytes_sent=sent, seconds=nan, client_seconds=trained)


def _find_prices(record: SearchRecord) -> Prices | None:
    place = "report.prices."
    given = {key.removeprefix(place): v for key, v in record.settings.items() if key.startswith(place)}
    return Prices.model_validate(given) if given else None


def _describe_saving(facts: SearchFacts) -> str:
    return f"{facts.rounds_saved:,} saved by stopping early" if facts.rounds_saved else ""


def _tabulate_best_values(record: SearchRecord, facts: SearchFacts) -> Table | None:
    if facts.best_trial is None:
        return None
    baseline = record.baseline.settings if record.baseline else {}
    rows = [
        [
            build_plain_label(key),
            format_searched_value(value),
            format_searched_value(baseline[key]) if key in baseline else "–",
            key,
        ]
        for key, value in facts.best_values.items()
    ]
    return Table(
        [Column("setting", number=False), Column("best"), Column("baseline"), Column("key", number=False)], rows
    )


def _explain_falls(record: SearchRecord, falls: Sensitivity) -> Iterator[str]:
    if not falls.known:
        return
    unit = "points" if _is_in_points(record) else name_metric(record)
    yield (
        f"How much worse ({unit}) a regularizer does when one setting of its best trial is off, in the worse "
        "direction, or in the only one that the trials reach; of an annealing rate γ it is 1 − γ that is off."
    )


def _tabulate_falls(record: SearchRecord, falls: Sensitivity) -> Table:
    unit = "points" if _is_in_points(record) else name_metric(record)
    means = [
        [name, "mean of the settings", f"{factor} times", "", format_degradation(record, falls.average(name, factor))]
        for name in falls.regularizers
        for factor in FACTORS
    ]
    single = [
        [
            fall.regularizer,
            build_plain_label(fall.key),
            f"{fall.factor} times",
            _format_change(fall),
            format_degradation(record, fall.fall) + (f" ({fall.failed} failed)" if fall.failed else ""),
        ]
        for fall in falls.falls
    ]
    columns = [Column("regularizer", number=False), Column("setting", number=False)]
    columns += map(Column, ("off by", "from → to", f"loss ({unit})"))
    return Table(columns, [*means, *single], frozenset(range(len(means))))


def _format_change(fall: Degradation) -> str:
    return f"{format_searched_value(fall.right)} → {'–' if fall.wrong is None else format_searched_value(fall.wrong)}"


def _tabulate_trials(record: SearchRecord) -> Table:
    columns = [Column("trial", number=False), Column(name_metric(record))]
    columns += [*(Column(build_plain_label(key)) for key in record.space), Column("status", number=False)]
    columns += [Column("rounds")]
    rows = [
        [
            trial.name,
            format_metric(trial.value),
            *(format_searched_value(trial.values[key]) for key in record.space),
            trial.status,
            str(trial.rounds),
        ]
        for trial in rank_trials(record)
    ]
    return Table(columns, rows, frozenset({0} if record.best_trial else ()))


def _describe_making(record: SearchRecord, facts: RunFacts, url: str | None) -> Made:
    seeds = f"{record.seeds} seeds per trial, of which the mean counts" if record.seeds > 1 else "one seed per trial"
    space = ((build_plain_label(key), _describe_domain(domain)) for key, domain in record.space.items())
    return Made(
        rows=[
            link_to_mlflow(record.name, url),
            *list_facts(facts),
            ("searcher", record.algorithm),
            ("scheduler", record.scheduler),
            ("seeds", seeds),
            *space,
        ],
        settings=yaml_text.write(dict(record.settings)),
        finished=facts.finished.replace("T", " ")[:16],
    )


DOMAINS = {
    "uniform": "from {} to {}",
    "loguniform": "from {} to {}, on a logarithmic scale",
    "quniform": "from {} to {}, in steps of {}",
    "randint": "whole numbers from {} to below {}",
}
"""How the values of a key were drawn, in words; others are listed."""


def _describe_domain(domain: Mapping[str, Sequence[Any]]) -> str:
    """Describes which values of a key were tried."""
    ((kind, values),) = domain.items()
    written = list(map(format_searched_value, values))
    return DOMAINS[kind].format(*written) if kind in DOMAINS else f"one of {', '.join(written)}"
