"""The summary of ``fednar data inspect``, compared with numbers computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.config import read_data
from fednar_ray.data.examples import Examples, Shards
from fednar_ray.data.label_summary import _summarize, compute_share_between
from fednar_ray.data.loading import load_federation
from fednar_ray.data.summary import compute_heterogeneity, format_summary, summarize
from fednar_ray.report.plots import draw_federation
from tests.support.drawn import draw

rows_of_counts = st.lists(st.lists(st.integers(0, 30), min_size=4, max_size=4), min_size=1, max_size=6)


def test_the_distance_of_two_clients_with_one_class_each_matches_the_number_by_hand() -> None:
    # halves of either class: H(¾, ¼) − (0 + 1)/2 = 0.811278 − 0.5 bits, whose root is 0.557923
    assert compute_heterogeneity(np.array([[5, 0], [0, 5]])) == pytest.approx(0.557923, abs=1e-6)


def test_equal_clients_have_distance_zero_and_empty_ones_are_ignored() -> None:
    assert compute_heterogeneity(np.array([[2, 4, 6], [1, 2, 3], [0, 0, 0]])) == pytest.approx(0, abs=1e-7)


@draw(60)
@given(rows=rows_of_counts)
def test_the_distance_follows_from_entropies(rows: list[list[int]]) -> None:
    counts = np.array(rows)
    counts[0, 0] += 1
    whole = counts.sum(axis=0) / counts.sum()
    shares = [row / row.sum() for row in counts if row.any()]
    own = [entropy((row + whole) / 2, base=2) - (entropy(row, base=2) + entropy(whole, base=2)) / 2 for row in shares]
    expected = np.mean([np.sqrt(max(divergence, 0)) for divergence in own])
    assert compute_heterogeneity(counts) == pytest.approx(expected, abs=1e-6)
    assert 0 <= compute_heterogeneity(counts) <= 1


def test_the_summary_of_a_small_federation_matches_numbers_by_hand() -> None:
    x = np.zeros((6, 3), dtype=np.float32)
    shards = Shards(Examples(x, np.array([0, 0, 1, 2, 2, 2])), np.array([0, 1, 1, 6]))
    held_out = Examples(x[:2], np.array([0, 2]))
    found = summarize(fr.Federation.from_shards("small", shards, held_out, held_out, 4))
    assert (found.clients, found.empty_clients, found.examples, found.left_out) == (3, 1, 6, 4)
    assert (found.validation_examples, found.test_examples) == (2, 2)
    assert found.classes == {0: pytest.approx(1 / 3), 1: pytest.approx(1 / 6), 2: pytest.approx(1 / 2)}
    assert (found.sizes["least"], found.sizes["median"], found.sizes["most"], found.sizes["mean"]) == (0, 1, 5, 2)
    assert (found.clients_bytes, found.held_out_bytes) == (6 * (3 * 4 + 8), 2 * 2 * (3 * 4 + 8))
    text = dict(format_summary(found))
    assert text["clients"] == "3, 1 of them empty"
    assert text["training examples"] == "6, 4 left out"
    assert text["classes"] == "3, each 16.7% to 50.0% of the examples"


def test_classes_are_not_counted_for_real_valued_labels(tmp_path: Path) -> None:
    pairs = [(np.zeros((3, 2)), [0.5, -1.0, 7.25]), (np.ones((1, 2)), [3.0])]
    federation = fr.Federation(pairs, pairs[0], task="regression")
    found = summarize(federation)
    assert (found.classes, found.task) == (None, "regression")
    assert federation.label_counts().tolist() == [[3], [1]]
    assert "classes" not in dict(format_summary(found))
    assert draw_federation(federation.label_counts(), tmp_path / "f.png").stat().st_size > 0


def test_the_labels_of_a_regression_are_summarized_by_client(tmp_path: Path) -> None:
    pairs = [(np.zeros((3, 2)), [1.0, 2.0, 6.0]), (np.ones((2, 2)), [8.0, 8.0])]
    federation = fr.Federation(dict(zip(("north", "south"), pairs, strict=True)), pairs[0], task="regression")
    found = summarize(federation)
    assert found.labels is not None
    assert [own.mean for own in found.labels] == [3, 8]
    assert [own.deviation for own in found.labels] == [pytest.approx(np.std([1, 2, 6])), 0]
    assert found.labels[0].quantiles == (1, 1.5, 2, 4, 6)
    # one-way analysis of variance: between (3·2² + 2·3²)/5 = 6, of 8.8 in all (whose mean is 5)
    assert found.heterogeneity == pytest.approx(6 / np.var([1, 2, 6, 8, 8]))
    text = dict(format_summary(found))
    assert text["  north"] == "3 examples, labels 3 ± 2.16"
    assert "0 = equal means" in text["heterogeneity"]
    quantiles = [own.quantiles for own in found.labels]
    drawn = draw_federation(federation.label_counts(), tmp_path / "f.png", federation.client_names, labels=quantiles)
    assert drawn.stat().st_size > 0


@pytest.mark.parametrize(("labels", "share"), [([[1, 2], [1, 2]], 0), ([[1, 1], [2]], 1), ([[3], [3, 3], []], 0)])
def test_clients_that_do_not_differ_have_no_variance_between_them(labels: list[list[float]], share: float) -> None:
    assert compute_share_between([_summarize(np.array(own, dtype=float)) for own in labels]) == share


def test_more_skew_gives_more_heterogeneity() -> None:
    found = []
    for alpha in (100, 1, 0.1):
        partition = {"kind": "dirichlet", "clients": 10, "alpha": alpha}
        federation = load_federation(read_data({"partition": partition}), seed=0)
        found.append(summarize(federation).heterogeneity)
    assert found == sorted(found)
    assert found[0] < 0.2 < 0.6 < found[2]


def test_the_command_prints_and_draws_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(
        "experiment: {name: mine, data: {partition: {clients: 7}}, model: {name: mlp}, federation: {local_steps: 1}}"
    )
    shown = CliRunner().invoke(cli, ["data", "inspect", "e.yaml", "data.validation=0.1"], catch_exceptions=False)
    assert "digits, seed 0" in shown.output
    assert "validation and test 144 and 360" in shown.output
    assert Path("mine-data.png").read_bytes().startswith(b"\x89PNG")
    arguments = ["data", "inspect", "e.yaml", "--json", "--figure", "other.png"]
    found = json.loads(CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout)
    assert (found["clients"], found["examples"], found["figure"]) == (7, 1437, "other.png")
    assert found["clients_bytes"] == 1437 * (64 * 4 + 8)
    assert Path("other.png").exists()


def test_the_command_needs_a_data_section(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("experiment: {federation: {local_steps: 1}}")
    with pytest.raises(fr.BadInput, match="data: missing"):
        CliRunner().invoke(cli, ["data", "inspect", str(path)], catch_exceptions=False)


@pytest.mark.parametrize("command", [["data", "inspect"], ["run"], ["tune"]])
@pytest.mark.parametrize(
    ("share", "problem"), [(0.0001, "is none; use at least"), (0.9999, "is all of them; use at most")]
)
def test_every_command_refuses_a_validation_share_of_no_or_all_examples(
    command: list[str], share: float, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(
        f"experiment: {{name: mine, data: {{validation: {share}, partition: {{clients: 7}}}}, model: {{name: mlp}},"
        " federation: {local_steps: 1}, tracking: {uri: 'sqlite:///m.db'}, execution: {placement: serial}}\n"
        "search: {space: {algorithm.local_lr: {uniform: [0.1, 0.2]}}, trials: 2}\n"
    )
    with pytest.raises(fr.BadInput, match=rf"data\.validation: {share:g} of 1437 examples {problem}"):
        CliRunner().invoke(cli, [*command, "e.yaml"], catch_exceptions=False)
    assert not Path("searches").exists()
