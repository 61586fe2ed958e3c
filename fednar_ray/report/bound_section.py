"""Builds the part of a page that says how sensitive a run is to its clip bound A, from the run's own steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from fednar_ray.algorithms.regularizers import CLIPPING, GRADIENT_ALONE
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.clip_bound_plot import draw_norms, draw_shares
from fednar_ray.report.clip_bounds import BoundSensitivity, describe_share, round_bound
from fednar_ray.report.page import Column, PageFigure, Table
from fednar_ray.report.svg import draw

SHARES = (0.1, 0.5, 0.9)  # of the steps: the bounds that clip so many are listed


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSection:
    """What a page shows of the sensitivity to A."""

    answer: str
    table: Table
    figures: Sequence[PageFigure]
    notes: Sequence[str]


def build_bound_section(records: Sequence[RoundRecord], regularizer: str, *, of: str = "") -> BoundSection | None:
    """Builds the section from the rounds of a run, or of several seeds; None if no step norms are recorded.

    Args:
        records: The rounds.
        regularizer: The name of the regularizer, which says whether steps were clipped at all; empty if not known.
        of: Whose steps they are, if a page has those of several.
    """
    found = BoundSensitivity.measure(records)
    if found is None:
        return None
    return BoundSection(
        answer=(f"{of}: " if of else "") + _describe(found, regularizer),
        table=_tabulate(found),
        figures=list(_draw(found)),
        notes=list(_explain(found, regularizer)),
    )


def _describe(found: BoundSensitivity, regularizer: str) -> str:
    clips = "clipped" if regularizer in CLIPPING else "would have clipped"
    share = describe_share(found.compute_share(found.clip_bound))
    tenth, half = (round_bound(found.find_bound(share)) for share in (0.1, 0.5))
    return (
        f"The bound A = {found.clip_bound:g} {clips} {share} of the steps. "
        f"A = {tenth:g} would clip one step in ten, A = {half:g} every second one."
    )


def _tabulate(found: BoundSensitivity) -> Table:
    """Lists the bounds that clip 10, 50 and 90 % of the steps, and the run's own, the largest first."""
    listed = [(found.find_bound(share), f"{100 * share:g} %") for share in SHARES]
    own = (found.clip_bound, f"{describe_share(found.compute_share(found.clip_bound))} (as trained)")
    rows = sorted([*listed, own], key=lambda row: -row[0])
    cells = [[f"{bound if row is own else round_bound(bound):g}", clipped] for row in rows for bound, clipped in [row]]
    return Table([Column("clip bound A"), Column("steps that it clips")], cells, frozenset({rows.index(own)}))


def _draw(found: BoundSensitivity) -> Iterator[PageFigure]:
    rounds = [record.round_index for record in found.records]
    if len(set(rounds)) == len(rounds):  # of a single run
        yield PageFigure(
            "Length of single steps before clipping",
            draw(lambda axes: _draw_rounds(axes, found), "norm of steps and clip bound over rounds"),
            "The norm of gradient plus weight decay. FedNAR shortens steps above the bound A.",
        )
    yield PageFigure(
        "Steps that a bound would clip",
        draw(lambda axes: draw_shares(axes, found), "share of clipped steps over the clip bound"),
        "A bound to the right of the curve clips nothing; one to the left of it clips every step.",
    )


def _draw_rounds(axes: Axes, found: BoundSensitivity) -> None:
    draw_norms(axes, found.records)
    axes.set_xlabel("round")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(loc="best", ncols=2)


def _explain(found: BoundSensitivity, regularizer: str) -> Iterator[str]:
    yield (
        "From the steps that were taken: with another A the model differs, and later steps with it. Which result it "
        "would reach, only runs with it can show; fednar tune trains them."
    )
    if regularizer in GRADIENT_ALONE:
        yield "These are lengths of the gradient alone; FedNAR bounds the gradient plus the weight decay."
    if any(record.metrics["clip_bound"] != found.clip_bound for record in found.records):
        yield "A is that of the first round; it changes from round to round, and the shares take that into account."
