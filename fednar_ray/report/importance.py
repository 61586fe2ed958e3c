"""Computes how much the metric depends on each searched key, by Optuna's fANOVA."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fednar_ray.report.axes import AxisScale, build_axis_scale, format_searched_value
from fednar_ray.report.heat_maps import LEAST_TRIALS
from fednar_ray.tracking.searches import SearchRecord

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SEED = 0  # of fANOVA's forest, so that a report is reproducible


def explain_missing_importances(record: SearchRecord) -> str | None:
    """Returns a sentence that says why importances cannot be computed; None if they can."""
    finished = record.finished
    if len(finished) < LEAST_TRIALS:
        return f"Importances need {LEAST_TRIALS} trials that ran all rounds; there are {len(finished)}."
    if len({trial.final for trial in finished}) < 2:
        return "All trials ended at the same value, so no key is more important than another."
    if not _list_varied_scales(record):
        return "No searched key took two values, so none can be more important than another."
    return None


def compute_importances(record: SearchRecord) -> dict[str, float]:
    """Computes the share of the metric's variance that each varied key explains, most important first.

    Returns:
        Key → share. Keys of which only one value was tried are left out.

    Source: Hutter et al., "An efficient approach for assessing hyperparameter importance", ICML 2014 (fANOVA).
    """
    import optuna  # with scikit-learn, which takes a second to import
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise it logs that it created a study
    scales = _list_varied_scales(record)
    distributions = {
        scale.key: _build_distribution(scale, [trial.values[scale.key] for trial in record.finished])
        for scale in scales
    }
    study = optuna.create_study(direction="maximize" if record.mode == "max" else "minimize")
    for trial in record.finished:
        params = {scale.key: _convert_param(scale, trial.values[scale.key]) for scale in scales}
        study.add_trial(create_trial(params=params, distributions=distributions, value=trial.final))
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=SEED)))


def _list_varied_scales(record: SearchRecord) -> list[AxisScale]:
    scales = [build_axis_scale(record, key, record.finished) for key in record.space]
    return [
        scale
        for scale in scales
        if len({_convert_param(scale, trial.values[scale.key]) for trial in record.finished}) > 1
    ]


def _convert_param(scale: AxisScale, value: Any) -> str | float:
    return format_searched_value(value) if scale.categories else float(value)


def _build_distribution(scale: AxisScale, values: Sequence[Any]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if scale.categories:
        return CategoricalDistribution(scale.categories)
    return FloatDistribution(float(min(values)), float(max(values)), log=scale.log)
