"""The pages of runs and comparisons: what they answer, what they show, and that they need nothing else."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from fednar_ray.config import CompareSettings, Experiment
from fednar_ray.config.recording import Prices
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.reports import RoundRecord
from fednar_ray.core.step_norms import LEVELS
from fednar_ray.report.bound_section import build_bound_section
from fednar_ray.report.comparison_answer import describe_comparison
from fednar_ray.report.comparison_page import ComparisonPage
from fednar_ray.report.comparison_table import Outcome, build_rows
from fednar_ray.report.effort import format_bytes, format_cost, format_seconds, measure_effort
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.run_page import _compute_share_interval, build_run_page, describe_run
from fednar_ray.report.run_plots import Variant, build_measure
from fednar_ray.report.svg import FAINT, INK, draw

PRICES = Prices(gpu_hour=3.0, cpu_hour=0.5, gb=0.1)


def build_history(values: Sequence[float], metric: str = "accuracy", **more: float) -> tuple[RoundRecord, ...]:
    return tuple(
        RoundRecord(
            round_index=t,
            metrics={
                f"test_{metric}": value, "train_loss": 1 / (t + 1), "clip_fraction": 0.5, "weight_decay": 0.1,
                "effective_weight_decay": 0.05, "step_norm": 2.0, "step_norm_p10": 1.0, "step_norm_p90": 3.0,
                "clip_bound": 10.0, "update_norm": 1.0, "bytes_down": 6e5, "bytes_up": 4e5, "round_seconds": 90.0,
                "client_seconds": 180.0, **more,
            },
            client_ids=(0, 1),
            exclusions={},
            step_norms={0: 1.5, 1: 2.5},
        )
        for t, value in enumerate(values)
    )  # fmt: skip


def build_outcomes(finals: Mapping[tuple[float, str], Sequence[Sequence[float]]], metric: str = "accuracy"):
    return {
        Variant(decay, name): [Outcome(build_history(values, metric), ()) for values in seeds]
        for (decay, name), seeds in finals.items()
    }


def answer(finals, metric: str = "accuracy", **settings) -> list[str]:
    outcomes = build_outcomes(finals, metric)
    chosen = CompareSettings(final_rounds=1, **settings)
    return list(describe_comparison(list(build_rows(outcomes, chosen, metric)), chosen))


class Reader(HTMLParser):
    """Collects what a page would load from elsewhere, and its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and not str(value).startswith(("data:", "#")):
                self.outside.append(str(value))


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


# ---- what a comparison answers

BETTER = {
    (0.1, "decoupled"): [[0.5, 0.70], [0.6, 0.72], [0.6, 0.71]],
    (0.1, "fednar"): [[0.8, 0.9], [0.8, 0.93], [0.7, 0.9]],
}


def test_a_clear_difference_is_stated_with_its_interval():
    (sentence,) = answer(BETTER, target_accuracy=0.75)
    differences = np.array([0.2, 0.21, 0.19])
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert sentence == (
        "FedNAR reaches a test accuracy of 0.75 in 1 round, decoupled decay does not reach it; FedNAR ends at a test "
        f"accuracy of 0.910, decoupled decay at 0.710: +20.0 points (95 % interval +{100 * low:.1f} to "
        f"+{100 * high:.1f}), better beyond luck with 3 seeds."
    )


def test_a_difference_whose_interval_contains_zero_is_not_more_than_luck():
    finals = {(0.1, "decoupled"): [[0.70], [0.80]], (0.1, "fednar"): [[0.75], [0.79]]}
    (sentence,) = answer(finals, target_accuracy=0.9)
    assert "Neither FedNAR nor decoupled decay reaches a test accuracy of 0.9" in sentence
    assert sentence.endswith("not more than luck with 2 seeds.")


def test_a_lower_error_is_better():
    finals = {(0.1, "decoupled"): [[3.0], [3.1], [3.2]], (0.1, "fednar"): [[1.0], [1.1], [1.21]]}
    (sentence,) = answer(finals, "rmse")
    assert "FedNAR ends at a test rmse of 1.103, decoupled decay at 3.1: −2 (95 % interval −2." in sentence
    assert "better beyond luck" in sentence


def test_one_seed_and_no_difference_and_divergence_are_stated():
    assert "from one seed, which cannot tell it from luck" in answer({k: v[:1] for k, v in BETTER.items()})[0]
    same = {(0.1, name): [[0.5], [0.6]] for name in ("decoupled", "fednar")}
    assert answer(same)[0].endswith("no difference at all.")
    gone = {(0.1, "decoupled"): [[np.nan], [0.6]], (0.1, "fednar"): [[0.5], [0.6]]}
    assert "no difference can be given, because decoupled decay diverged" in answer(gone)[0]
    assert "nothing to compare it with" in answer({(0.1, "fednar"): [[0.5]]}, regularizers=["fednar"])[0]


def test_methods_are_compared_where_the_baseline_does_best_and_where_each_does_worst():
    finals = {
        **BETTER,
        (0.9, "decoupled"): [[0.1], [0.1], [0.1]],
        (0.9, "fednar"): [[0.6], [0.6], [0.6]],
    }  # fmt: skip
    _, where, worst = answer(finals)
    assert where == "This is at weight decay λ = 0.1, where decoupled decay does best."
    assert "FedNAR still ends at 0.600 (λ = 0.9), decoupled decay at 0.100 (λ = 0.9)" in worst


def test_an_unfinished_comparison_is_described():
    assert answer({(0.1, "fednar"): [[0.5]]})
    assert answer({(0.1, "decoupled"): [[0.5], [0.6]], (0.1, "fednar"): [[0.6]]})


# ---- what a run answers


def test_an_accuracy_has_wilsons_interval():
    found = list(describe_run(build_history([0.5, 0.95, 0.9]), build_measure("accuracy"), RunFacts(test_examples=200)))
    interval = stats.binomtest(180, 200).proportion_ci(0.95, method="wilson")
    assert f"0.900 (95 % interval {interval.low:.3f} to {interval.high:.3f}, from 200 test examples)" in found[0]
    assert "0.950, was in round 2" in found[1]


@pytest.mark.parametrize("right", [0, 1, 100, 200])
def test_wilsons_interval_is_that_of_scipy(right: int) -> None:
    wanted = stats.binomtest(right, 200).proportion_ci(0.95, method="wilson")
    found = _compute_share_interval(right / 200, 200)
    assert found == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert 0 <= found[0] < found[1] <= 1


def test_runs_without_a_test_or_with_a_divergence_are_described():
    bare = [RoundRecord(round_index=0, metrics={"train_loss": 1.0}, client_ids=(), exclusions={})]
    assert "nothing was evaluated" in next(describe_run(bare, build_measure("accuracy"), RunFacts()))
    assert "diverged" in next(describe_run(build_history([0.5, np.nan]), build_measure("accuracy"), RunFacts()))
    for history in (bare, build_history([0.5, np.nan]), build_history([0.5])):
        assert build_run_page("r", history, RunFacts())


# ---- cost


def test_effort_is_the_sum_over_rounds():
    history = build_history([0.1, 0.2, 0.3])
    assert measure_effort(history).bytes_sent == 3e6
    effort = measure_effort(history, 2)
    assert (effort.rounds, effort.seconds, effort.client_seconds) == (2, 180, 360)
    assert effort.compute_cost(PRICES, gpus=1) == pytest.approx(0.1 * 3.0 + 0.002 * 0.1)
    assert effort.compute_cost(PRICES, gpus=0.25) == pytest.approx(0.1 * 0.25 * 3.0 + 0.002 * 0.1)  # four share a GPU
    assert effort.compute_cost(PRICES, gpus=0) == pytest.approx(0.1 * 0.5 + 0.002 * 0.1)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (format_bytes(12), "12 bytes"), (format_bytes(2.5e6), "2.5 MB"), (format_bytes(3e9), "3 GB"),
        (format_seconds(2.345), "2.35 s"), (format_seconds(90), "1.5 min"), (format_seconds(7200), "2 h"),
    ],
)  # fmt: skip
def test_units_fit_the_size(written: str, expected: str):
    assert written == expected


# ---- pages


def build_pages() -> dict[str, str]:
    facts = RunFacts(
        command="fednar run a.yaml", label_counts=((3, 4), (5, 6)), class_names=("no", "yes"), test_examples=50,
        versions={"torch": "2"}, examples=18, data="digits",
    )  # fmt: skip
    experiment = Experiment.model_validate({"name": "a", "report": {"prices": PRICES.model_dump()}})
    outcomes = build_outcomes({**BETTER, (0.9, "decoupled"): BETTER[0.1, "decoupled"], (0.9, "fednar"): [[0.1]] * 3})
    settings = CompareSettings(final_rounds=1)
    comparison = ComparisonPage(
        name="<b>c</b>", rows=tuple(build_rows(outcomes, settings)), outcomes=outcomes, settings=settings, facts=facts,
        experiment=experiment,
    )  # fmt: skip
    names = ("north", "<i>south</i>")
    run = build_run_page("<b>r</b>", build_history([0.5, 0.6]), facts, experiment=experiment, client_names=names)
    return {"run": run, "comparison": comparison.build()}


@pytest.fixture(scope="module", params=["run", "comparison"])
def page(request: pytest.FixtureRequest) -> str:
    return build_pages()[request.param]


def test_a_page_needs_nothing_else_and_escapes_names(page: str):
    reader = read(page)
    assert reader.outside == []
    assert not {"script", "link", "iframe", "b", "i"} & set(reader.tags)
    assert len(page) < 2_000_000
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    boxes = re.findall(r'<div class="(\w+)"([^>]*)><table><thead>', page)
    assert boxes
    assert all(kind == "scroll" and 'tabindex="0"' in more and "aria-label=" in more for kind, more in boxes)
    assert page.count("<thead>") == len(boxes)
    assert re.search(r"\.scroll, \.wide {[^}]*background-attachment: local", page)  # the sign that there is more


def test_the_weight_decay_has_its_symbol_in_the_table_before_titles_and_notes_use_it():
    page = build_pages()["comparison"]
    results = page.index("<h2>Results</h2>")
    assert page.index(">weight decay λ</th>") < page.index(", λ = ", results)
    assert "λ₀" not in page


def test_figures_take_the_colors_of_the_page(page: str):
    figures = page.split("<svg")[1:]
    assert len(figures) >= 4
    for figure in figures:
        text = "<svg" + figure[: figure.index("</svg>")] + "</svg>"
        root = ElementTree.fromstring(text.replace("xlink:", ""))  # noqa: S314 - our own text
        assert root.get("aria-label")
        assert root.get("width") is None
        assert INK not in text
        assert FAINT not in text
        assert "var(--ink, currentColor)" in text


def test_the_page_of_a_run_shows_its_clients_and_cost():
    page = build_pages()["run"]
    assert "&lt;i&gt;south&lt;/i&gt;" in page
    for shown in ('<th class="number">yes</th>', "at the given prices", "fednar run a.yaml", "torch 2"):
        assert shown in page


def test_clients_are_listed_with_what_they_did():
    (record,) = build_history([0.5])
    left_out = replace(record, round_index=1, exclusions={1: Exclusion(ExclusionReason.NOT_FINITE)}, client_ids=(1,))
    page = build_run_page("r", [record, left_out], RunFacts(label_counts=((3,), (5,))), client_names=("north", "south"))
    rows = [line for line in page.splitlines() if "<td>north" in line or "<td>south" in line]
    cells = [re.findall("<td[^>]*>([^<]*)", row) for row in rows]
    assert cells == [["south", "5", "2", "2.5", "1"], ["north", "3", "1", "1.5", "0"]]  # the largest first


def test_a_page_says_which_bound_would_clip_how_many_of_the_steps():
    norms = np.linspace(0.5, 4.1, 1001)  # of all steps of a round
    records = [
        replace(record, norm_quantiles=tuple(np.quantile(norms, LEVELS).tolist()))
        for record in build_history([0.5, 0.6], clip_bound=2.0)
    ]
    section = build_bound_section(records, "fednar")
    clipped = (norms > 2.0).mean()
    assert section.answer.startswith(f"The bound A = 2 clipped {100 * clipped:.2g} % of the steps. ")
    expected = {f"{share:g} %": float(f"{np.quantile(norms, 1 - share / 100):.2g}") for share in (10, 50, 90)}
    rows = {clips: float(bound) for bound, clips in section.table.rows}
    assert {**expected, f"{100 * clipped:.2g} % (as trained)": 2.0} == rows
    assert "would have clipped" in build_bound_section(records, "none").answer
    page = build_run_page("r", records, RunFacts())
    assert "<h2>Sensitivity to the clip bound A</h2>" in page
    assert page.count("<figure>") == 6
    assert build_bound_section(build_history([0.5]), "fednar") is None  # rounds without recorded norms
    halved = replace(records[1], metrics={**records[1].metrics, "clip_bound": 1.0})  # A is annealed
    both = build_bound_section([records[0], halved], "fednar")
    assert float(both.table.rows[-1][0]) < float(section.table.rows[0][0])
    assert any("changes from round to round" in note for note in both.notes)


def test_a_page_links_to_mlflow_on_a_server():
    url = "http://127.0.0.1:5000/#/runs/ab12"
    assert read(build_run_page("r", build_history([0.5]), RunFacts(), url=url)).outside == [url]
    assert "fednar ui r" in build_run_page("r", build_history([0.5]), RunFacts())


def test_clients_own_examples_and_early_ends_are_shown_for_each_variant():
    clients = {"client_accuracy_mean": 0.61, "client_accuracy_worst_decile": 0.42}
    outcomes = {
        Variant(0.1, name): [
            Outcome(build_history([0.5, 0.6], **clients), (), stop="stopped early, after 2 of 9 rounds: x")
        ]
        for name in ("decoupled", "fednar")
    }
    settings = CompareSettings(final_rounds=1)
    rows = tuple(build_rows(outcomes, settings))
    page = ComparisonPage(name="c", rows=rows, outcomes=outcomes, settings=settings, facts=RunFacts()).build()
    assert page.count(">0.610<") == page.count(">0.420<") == 2
    assert "FedNAR, λ = 0.1: 1 of 1 runs stopped early, after 2 of 9 rounds: x." in page
    run = build_run_page("r", build_history([0.5], **clients), RunFacts())
    assert "accuracy of the worst tenth of clients" in run


@pytest.mark.parametrize(("cost", "text"), [(0.000382, "0.000382"), (0.25, "0.25"), (1234.5, "1,234.50")])
def test_a_cost_is_never_written_with_an_exponent(cost: float, text: str):
    assert format_cost(cost) == text


def test_the_same_figure_has_the_same_bytes():
    def build(axes) -> None:
        axes.plot([0, 1], [0, 1], label="<a & b>")
        axes.legend()

    assert draw(build, "a") == draw(build, "a")
    assert "&lt;a &amp; b&gt;" in draw(build, "a")
