"""Finds variants of a comparison that are the same training, because nothing was clipped.

Without clipping, ``fednar``, ``coupled`` and ``decoupled`` all take the step −η·(g + λ·x), to the last bit. With λ = 0,
so does ``none``.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fednar_ray.report.comparison_table import Outcome
from fednar_ray.report.run_plots import Variant, get_curve


def find_identical(outcomes: Mapping[Variant, Sequence[Outcome]]) -> list[tuple[Variant, ...]]:
    """Returns the groups of variants with one weight decay that clipped nothing and moved alike in every round."""
    unclipped = [variant for variant, runs in outcomes.items() if all(map(_clipped_nothing, runs))]
    groups: list[list[Variant]] = []
    for variant in unclipped:
        group = next((g for g in groups if _moved_alike(variant, g[0], outcomes)), None)
        if group is None:
            groups.append([variant])
        else:
            group.append(variant)
    return [tuple(group) for group in groups if len(group) > 1]


def _clipped_nothing(run: Outcome) -> bool:
    return not np.nansum(get_curve(run.history, "clip_fraction"))


def _moved_alike(one: Variant, other: Variant, outcomes: Mapping[Variant, Sequence[Outcome]]) -> bool:
    if one.weight_decay != other.weight_decay:
        return False
    curves = (
        [get_curve(run.history, "update_norm") for run in pair]
        for pair in zip(outcomes[one], outcomes[other], strict=True)
    )
    return all(np.array_equal(first, second, equal_nan=True) for first, second in curves)


def describe_identical(group: Sequence[Variant], run: str) -> str:
    """Returns a sentence about one group of identical variants; ``run`` is a run of it that can suggest a bound."""
    names = ", ".join(variant.regularizer for variant in group[:-1]) + f" and {group[-1].regularizer}"
    return (
        f"{names} are the same training at weight decay {group[0].weight_decay:g}, because no step was clipped; "
        f"a smaller bound tells them apart: fednar suggest {run}"
    )
