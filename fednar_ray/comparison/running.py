"""The same experiment under several regularizers and seeds: what FedNAR is worth, as a table and a chart."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from fednar_ray.config import CompareSettings, Document, Experiment, dotted
from fednar_ray.execution.ray_session import RaySession
from fednar_ray.experiment import Result, open_store, train
from fednar_ray.messages import RoundReport
from fednar_ray.preparation import prepare
from fednar_ray.report.runs import Variant, curve, draw_variants, final_accuracy
from fednar_ray.tracking.journal import run_directory
from fednar_ray.tracking.mlflow import RunTracker
from fednar_ray.tracking.reading import KIND_TAG, PARENT_TAG

CONFIDENCE = 0.95


class Progress(NamedTuple):
    """A round of one of the comparison's runs."""

    run: int  # counted from 0
    runs: int
    label: str
    report: RoundReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A variant's figures over its seeds."""

    variant: Variant
    final_accuracy: npt.NDArray[np.float64]  # [seeds] mean test accuracy of the last rounds
    difference: float | None  # mean paired difference to the first regularizer
    interval: float | None  # half-width of its 95 % interval (Student's t, paired by seed)
    rounds_to_target: float | None  # median over the seeds that reached it
    bytes_to_target: float | None  # down and up, median over the same
    reached: int  # seeds that reached the target
    clip_fraction: float
    client_seconds: float  # of training, mean over seeds
    wall_seconds: float  # all rounds, mean over seeds
    alerts: tuple[str, ...]  # of any seed, by kind

    def cells(self) -> dict[str, str]:
        """The row as text."""
        seeds, missing = len(self.final_accuracy), "–"
        spread = f" ± {self.final_accuracy.std(ddof=1):.3f}" if seeds > 1 else ""
        gain = missing if self.difference is None else f"{self.difference:+.3f}"
        gain += "" if self.interval is None else f" ± {self.interval:.3f}"
        reached = "" if self.reached == seeds else f" ({self.reached}/{seeds} seeds)"
        to_target = missing if self.rounds_to_target is None else f"{self.rounds_to_target:g}{reached}"
        return {
            "weight decay": f"{self.variant.weight_decay:g}",
            "regularizer": self.variant.regularizer,
            "final accuracy": f"{self.final_accuracy.mean():.3f}{spread}",
            "difference": gain,
            "rounds to target": to_target,
            "MB to target": missing if self.bytes_to_target is None else f"{self.bytes_to_target / 1e6:.1f}",
            "clipped": f"{100 * self.clip_fraction:.0f} %",
            "client-s": f"{self.client_seconds:.1f}",
            "wall s": f"{self.wall_seconds:.1f}",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A finished comparison."""

    settings: CompareSettings
    rows: tuple[Row, ...]
    chart: Path
    accuracy_by_decay: Path | None  # a picture, where there are several weight decays
    run_id: str
    tracking_uri: str


def variants(document: Document) -> list[Variant]:
    """The rows: regularizers within weight decays."""
    decays = document.compare.weight_decays or (document.experiment.regularizer.weight_decay,)
    return [Variant(decay, name) for decay in decays for name in document.compare.regularizers]


def compare(document: Document, session: RaySession) -> Generator[Progress, None, Comparison]:
    """Run every variant with every seed, a child run each under one parent run; the generator returns the rows."""
    experiment = document.experiment
    store, experiment_id = open_store(experiment)
    if experiment.execution.placement != "serial":
        session.connect()
    run_id = store.create_run(experiment_id, "comparison", {KIND_TAG: "comparison"})
    directory = run_directory(experiment, run_id)
    with RunTracker(store, run_id, directory) as parent:
        parent.log_params({**dotted(experiment), **_compared(document.compare)})
        parent.log_experiment(experiment)
        results: dict[Variant, list[Result]] = {variant: [] for variant in variants(document)}
        runs = [(seed, variant) for seed in range(document.compare.seeds) for variant in results]
        for index, (offset, variant) in enumerate(runs):
            one = _variant_of(experiment, variant, experiment.seed + offset)
            label = f"{variant.regularizer} λ={variant.weight_decay:g} seed={one.seed}"
            training = train(prepare(one, session=session), session, tags={PARENT_TAG: run_id}, name=label)
            result = yield from _labelled(training, index, len(runs), label)
            results[variant].append(result)
        records = {variant: [run.history for run in seeds] for variant, seeds in results.items()}
        chart, *further = draw_variants(records, document.compare.final_rounds, directory)
        rows = tuple(_rows(results, document.compare))
        for picture in (chart, *further):
            parent.log_file(picture)
        parent.log_table([row.cells() for row in rows], "comparison.json")
        parent.log_metrics(_headline(rows))
        return Comparison(
            settings=document.compare,
            rows=rows,
            chart=chart,
            accuracy_by_decay=further[0] if further else None,
            run_id=run_id,
            tracking_uri=parent.uri,
        )
    raise AssertionError("unreachable: a tracker suppresses no error")


def _compared(settings: CompareSettings) -> dict[str, object]:
    return {f"compare.{key}": value for key, value in settings.model_dump(mode="json").items()}


def _variant_of(experiment: Experiment, variant: Variant, seed: int) -> Experiment:
    regularizer = experiment.regularizer.model_copy(
        update={"name": variant.regularizer, "weight_decay": variant.weight_decay}
    )
    return experiment.model_copy(update={"regularizer": regularizer, "seed": seed})


def _labelled(
    training: Generator[RoundReport, None, Result], run: int, runs: int, label: str
) -> Generator[Progress, None, Result]:
    try:
        while True:
            yield Progress(run, runs, label, next(training))
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        training.close()


def _rows(results: Mapping[Variant, Sequence[Result]], settings: CompareSettings) -> Iterator[Row]:
    for variant, runs in results.items():
        final = np.array([final_accuracy(run.history, settings.final_rounds) for run in runs])
        baseline = Variant(variant.weight_decay, settings.regularizers[0])
        reference = [final_accuracy(run.history, settings.final_rounds) for run in results[baseline]]
        difference, interval = (None, None) if variant == baseline else paired(final, np.array(reference))
        reached = [r for run in runs if (r := _to_target(run, settings.target_accuracy)) is not None]
        yield Row(
            variant=variant,
            final_accuracy=final,
            difference=difference,
            interval=interval,
            rounds_to_target=float(np.median([rounds for rounds, _ in reached])) if reached else None,
            bytes_to_target=float(np.median([sent for _, sent in reached])) if reached else None,
            reached=len(reached),
            clip_fraction=float(np.mean([curve(run.history, "clip_fraction").mean() for run in runs])),
            client_seconds=float(np.mean([curve(run.history, "client_seconds").sum() for run in runs])),
            alerts=tuple(dict.fromkeys(alert.name for run in runs for alert in run.alerts)),
            wall_seconds=float(np.mean([curve(run.history, "round_seconds").sum() for run in runs])),
        )


def paired(values: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> tuple[float, float | None]:
    """Mean difference of pairs [seeds], and the half-width of its 95 % interval by Student's t (None for one pair)."""
    differences = values - reference
    if len(differences) < 2:
        return float(differences.mean()), None
    quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, len(differences) - 1)
    return float(differences.mean()), float(quantile * stats.sem(differences))


def _to_target(run: Result, target: float) -> tuple[int, float] | None:
    """Rounds, and bytes down and up, until the test accuracy first reached ``target``."""
    hits = np.flatnonzero(curve(run.history, "test_accuracy") >= target)
    if not len(hits):
        return None
    rounds = int(hits[0]) + 1
    sent = sum(curve(run.history, name)[:rounds].sum() for name in ("bytes_down", "bytes_up"))
    return rounds, float(sent)


def _headline(rows: Sequence[Row]) -> dict[str, float]:
    headline = {}
    for row in rows:
        label = f"{row.variant.regularizer}_{row.variant.weight_decay:g}"
        headline[f"final_accuracy/{label}"] = float(row.final_accuracy.mean())
        if row.difference is not None:
            headline[f"difference/{label}"] = row.difference
    return headline
