"""Suggests a clip bound A from the step norms that a run has recorded."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fednar_ray.algorithms.regularizers import CLIPPING, GRADIENT_ALONE
from fednar_ray.config import Experiment, flatten_settings, load
from fednar_ray.config.loading import load_document
from fednar_ray.core.errors import BadInput
from fednar_ray.core.reports import RoundRecord
from fednar_ray.core.step_norms import LEVELS
from fednar_ray.experiments.comparison.record import explain_comparison
from fednar_ray.report.clip_bound_plot import draw_clip_bound
from fednar_ray.report.clip_bounds import compute_scaled_norms, describe_share, get_annealing, round_bound
from fednar_ray.report.facts import RunFacts
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_lookup import RunRef, find_run_or_newest, list_own_runs

SHORT_RUN = "fednar run FILE federation.rounds=5"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipBoundSuggestion:
    """Where a clip bound would bite in a run, and which bounds are worth trying.

    Attributes:
        run: The name of the run.
        directory: Its directory.
        regularizer: Its regularizer.
        clip_bound: Its A_0.
        clipped: The share of its steps that its own A_t clips, or would clip if the regularizer clips nothing.
        low: The A_0 that would clip half of its steps; the recommended range begins here.
        high: The A_0 that would clip one step in ten; the range ends here.
        value: The A_0 to try first; it would clip a quarter of the steps.
        largest: The largest ‖v‖ of any step.
        quantiles: Quantiles of ‖v‖ by level (0 to 1), of the rounds ``first``, ``middle`` and ``last`` and ``overall``.
        notes: What to know about these numbers, one sentence each.
        plot: The picture that shows them.
        weight_decay: The run's λ_0.
        started_from: The file that the run was started from, and its overrides, if they still say what was run; else
            empty.
    """

    run: str
    directory: Path
    regularizer: str
    clip_bound: float
    clipped: float
    low: float
    high: float
    value: float
    largest: float
    quantiles: Mapping[str, Mapping[float, float]]
    notes: tuple[str, ...]
    plot: Path
    weight_decay: float
    started_from: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One sentence: which bound clips how many steps."""
        clips = "clips" if self.regularizer in CLIPPING else "would clip"
        return (
            f"at A = {self.high:g} one in ten steps would be clipped, at A = {self.low:g} half of them; "
            f"the run's A = {self.clip_bound:g} {clips} {describe_share(self.clipped)}"
        )

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands to try next."""
        file = " ".join(map(shlex.quote, self.started_from or [str(RunDirectory(self.directory).experiment_yaml)]))
        name = "" if self.regularizer == "fednar" else "regularizer.name=fednar "
        bound = f"regularizer.clip_bound={self.value:g}"
        decays = ",".join(f"{decay:g}" for decay in self.decays)
        return (
            f"fednar run {file} {name}{bound}",
            f"fednar compare {file} {bound}",
            f"fednar compare {file} {bound} 'compare.weight_decays=[{decays}]'",
        )

    @property
    def choice(self) -> str:
        """How the A of the commands was chosen, and what the last of them is for."""
        return (
            f"A = {self.value:g} would have clipped a quarter of this run's steps; several weight decays show how much "
            "each method suffers from a badly chosen one"
        )

    @property
    def decays(self) -> tuple[float, ...]:
        """Weight decays to compare: a tenth of the run's, its own, and ten times as much."""
        middle = self.weight_decay or 0.01
        return tuple(float(f"{factor * middle:.6g}") for factor in (0.1, 1, 10))


def suggest(run: str | Path | None = None, *, output: Path | None = None) -> ClipBoundSuggestion:
    """Suggests a clip bound from a run's step norms, and draws them.

    A short run is enough. It may have any regularizer: the norms are recorded before clipping.

    Args:
        run: The run's name, id or directory, or the name of an experiment, which stands for its newest run. None: the
            newest run in ``runs/`` that has recorded step norms. Runs of comparisons and searches are taken only if
            they are named exactly.
        output: Where to draw the picture; None: ``clip_bound.png`` in the run's directory.

    Returns:
        The suggestion.

    Raises:
        BadInput: There is no such run, or it has not recorded step norms.

    Examples:
        >>> suggestion = fr.suggest(result.directory)
        >>> again = fr.load("digits.yaml", [f"regularizer.clip_bound={suggestion.value}"])
    """
    ref, records = _find_newest() if run is None else _load(find_run_or_newest(str(run)))
    if not records:
        raise BadInput(_explain_missing(ref))
    experiment, plot = load(ref.files.experiment_yaml), output or ref.files.suggestion_plot
    norms = compute_scaled_norms(records, experiment.regularizer.clip_bound)
    low, value, high = (round_bound(float(np.quantile(norms, level))) for level in (0.5, 0.75, 0.9))
    anneal = [get_annealing(record, experiment.regularizer.clip_bound) for record in records]
    draw_clip_bound(records, plot, low=low, high=high, anneal=anneal)
    return ClipBoundSuggestion(
        run=ref.name,
        directory=ref.directory,
        regularizer=experiment.regularizer.name,
        clip_bound=experiment.regularizer.clip_bound,
        clipped=float((norms > experiment.regularizer.clip_bound).mean()),
        low=low,
        high=high,
        value=value,
        largest=max(record.norm_quantiles[-1] for record in records),
        quantiles=_select_quantiles(records, norms),
        notes=tuple(_list_notes(experiment, records)),
        plot=plot,
        weight_decay=experiment.regularizer.weight_decay,
        started_from=tuple(_find_start(ref, experiment)),
    )


def _find_start(ref: RunRef, experiment: Experiment) -> list[str]:
    """Finds the file and the overrides of the command that started a run, if they give the run's experiment today.

    A run of a comparison may differ in what the comparison varies.
    """
    try:
        _, command, *words = shlex.split(RunFacts.read(ref.files.facts).command)
        files, overrides = [w for w in words if w.endswith((".yaml", ".yml"))], [w for w in words if "=" in w]
        if len(files) != 1 or command not in ("run", "compare") or len(words) != 1 + len(overrides):
            return []
        found = load_document(files[0], overrides).experiment
    except (ValueError, BadInput):
        return []
    if command == "compare":
        varied = {"name": experiment.regularizer.name, "weight_decay": experiment.regularizer.weight_decay}
        regularizer = found.regularizer.model_copy(update=varied)
        found = found.model_copy(update={"regularizer": regularizer, "seed": experiment.seed})
    same = _select_decisive(found) == _select_decisive(experiment)
    return [files[0], *(w for w in overrides if not w.startswith("regularizer.clip_bound="))] if same else []


def _select_decisive(experiment: Experiment) -> dict[str, object]:
    """Returns all settings but those that only say where clients train."""
    return {key: value for key, value in flatten_settings(experiment).items() if not key.startswith("execution.")}


def _find_newest() -> tuple[RunRef, list[RoundRecord]]:
    for ref in list_own_runs():
        found = _load(ref)
        if found[1]:
            return found
    raise BadInput(
        f"no run in ./runs has recorded step norms; train a short one: {SHORT_RUN}; or name a run of a comparison or a "
        "search, which fednar runs lists"
    )


def _load(ref: RunRef) -> tuple[RunRef, list[RoundRecord]]:
    """Returns the run with the rounds that have quantiles."""
    try:
        return ref, [record for record in load_records(ref.directory) if record.norm_quantiles]
    except OSError as error:
        raise BadInput(f"the rounds of {ref.directory} cannot be read: {error.strerror}") from None


def _explain_missing(ref: RunRef) -> str:
    if ref.files.comparison_yaml.exists():
        return explain_comparison(ref.directory)
    return f"{ref.name} has no round with step norms (an earlier version records none); train a short run: {SHORT_RUN}"


def _select_quantiles(
    records: Sequence[RoundRecord], norms: npt.NDArray[np.float64]
) -> dict[str, Mapping[float, float]]:
    chosen = {"first": records[0], "middle": records[len(records) // 2], "last": records[-1]}
    found = {name: dict(zip(LEVELS, record.norm_quantiles, strict=True)) for name, record in chosen.items()}
    return {**found, "overall": dict(zip(LEVELS, np.quantile(norms, LEVELS).tolist(), strict=True))}


def _list_notes(experiment: Experiment, records: Sequence[RoundRecord]) -> list[str]:
    settings = experiment.regularizer
    notes = ["the norms are those before clipping; with another A the model differs, and later norms with it"]
    if settings.name in GRADIENT_ALONE:
        pull = max(r.metrics["weight_decay"] * r.metrics.get("parameter_norm", 0.0) for r in records)
        notes.append(
            f"this run's norms are of the gradient alone; fednar bounds g + λ·x, whose norm differs by at most "
            f"λ·‖x‖ = {pull:.2g} at weight decay {settings.weight_decay:g}"
        )
    else:
        notes.append(f"the norms are of g + λ·x at weight decay {settings.weight_decay:g}; another decay changes them")
    if settings.clip_bound_anneal != 1:
        notes.append(f"a suggested A is the first round's; it is annealed by {settings.clip_bound_anneal:g} per round")
    return notes


def explain_no_clipping(regularizer: str, records: Sequence[RoundRecord]) -> str | None:
    """Returns a sentence about a run that could clip and never did; None if it clipped a step, or cannot clip."""
    trained = [record for record in records if "clip_fraction" in record.metrics and record.norm_quantiles]
    if regularizer not in CLIPPING or not trained:
        return None
    if any(record.metrics["clip_fraction"] > 0 for record in trained):
        return None
    closest = max(trained, key=lambda record: record.norm_quantiles[-1] / record.metrics["clip_bound"])
    largest, bound = closest.norm_quantiles[-1], closest.metrics["clip_bound"]
    name = {"fednar": "FedNAR", "decoupled": "decoupled decay"}[regularizer]
    return (
        f"no step was clipped (largest step norm {largest:.3g}, bound {bound:g}): {name} acted as coupled decay; "
        "see fednar suggest"
    )
