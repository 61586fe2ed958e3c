"""Suggested clip bounds: against numpy, and against a run with the suggested bound."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.core.reports import RoundRecord
from fednar_ray.core.step_norms import LEVELS
from fednar_ray.experiments.suggestion import explain_no_clipping
from fednar_ray.report.comparison_table import Outcome
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.identical import describe_identical, find_identical
from fednar_ray.report.run_plots import Variant
from fednar_ray.tracking.journal import Journal

pytestmark = pytest.mark.usefixtures("long_computation")


def build_experiment(**regularizer: object) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "model": {"name": "mlp", "hidden": 4},
            "federation": {"rounds": 2, "clients_per_round": 4, "local_steps": 10, "batch_size": 8},
            "regularizer": regularizer,
            "execution": {"placement": "serial"},
        }
    )


def write_run(directory: Path, experiment: fr.Experiment, records: list[RoundRecord]) -> Path:
    with Journal(directory, experiment) as journal:
        for record in records:
            journal.log(record)
    return directory


def build_record(index: int, norms: np.ndarray, **metrics: float) -> RoundRecord:
    return RoundRecord(
        round_index=index,
        metrics={"clip_bound": 10.0, "weight_decay": 0.01, "clip_fraction": 0.0, **metrics},
        client_ids=(0,),
        exclusions={},
        norm_quantiles=tuple(np.quantile(norms, LEVELS).tolist()),
    )


@pytest.mark.parametrize("name", ["none", "fednar"])
def test_a_suggested_bound_clips_its_share_of_the_first_rounds_steps(name, federation, tmp_path):
    coupled = build_experiment(name="coupled", clip_bound=100)
    before = [r.record() for r in fr.iter_rounds(coupled, federation=federation)][:1]
    found = fr.suggest(write_run(tmp_path / "r-1", build_experiment(name=name, clip_bound=100), before))
    assert (found.clipped, found.clip_bound, found.regularizer) == (0, 100, name)
    # bounds have two digits, and the path of a run with this bound differs after its first clipped step
    for bound, share in ((found.low, 0.5), (found.value, 0.25), (found.high, 0.1)):
        first = next(iter(fr.iter_rounds(build_experiment(name="fednar", clip_bound=bound), federation=federation)))
        assert first.metrics["clip_fraction"] == pytest.approx(share, abs=0.15)
    assert found.plot.read_bytes().startswith(b"\x89PNG")


def test_quantiles_are_numpys_and_an_annealed_bound_is_scaled(tmp_path):
    norms = np.random.default_rng(0).uniform(1, 3, 2000)
    records = [build_record(0, norms), build_record(1, norms / 2, clip_bound=5.0)]
    found = fr.suggest(write_run(tmp_path / "r-1", build_experiment(clip_bound_anneal=0.5), records))
    assert found.quantiles["first"][0.9] == pytest.approx(np.quantile(norms, 0.9), rel=1e-3)
    assert found.quantiles["overall"][0.5] == pytest.approx(np.median(norms), rel=0.02)
    assert (found.low, found.high) == (pytest.approx(2, abs=0.1), pytest.approx(2.8, abs=0.1))
    assert any("annealed by 0.5" in note for note in found.notes)


def test_the_command_takes_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty = CliRunner().invoke(cli, ["suggest"])
    assert "no run in ./runs has recorded step norms" in str(empty.exception)
    write_run(tmp_path / "runs" / "digits-1", build_experiment(), [build_record(0, np.array([1.0, 2.0]))])
    shown = CliRunner().invoke(cli, ["suggest"]).output
    assert re.search(r"at A = 1\.9 one in ten steps would be clipped, at A = 1\.5 half of them; .* clips none", shown)
    assert f"fednar run {tmp_path}/runs/digits-1/experiment.yaml regularizer.clip_bound=1.8" in shown
    fields = json.loads(CliRunner().invoke(cli, ["suggest", "digits-1", "--json"]).stdout)
    assert (fields["low"], fields["high"], fields["largest"]) == (1.5, 1.9, 2.0)


def test_the_file_that_a_run_was_started_from_is_proposed_if_it_still_says_what_was_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "experiment: {model: {name: mlp}, federation: {rounds: 2, local_steps: 5}, data: {validation: 0.1}}"
    Path("mine.yaml").write_text(text)
    experiment = fr.load("mine.yaml", ["seed=3", "regularizer.clip_bound=7"])
    record = build_record(0, np.array([1.0, 2.0]), clip_bound=7.0)
    directory = write_run(tmp_path / "runs" / "mine-1", experiment, [record])
    facts = RunFacts(command="fednar run mine.yaml seed=3 regularizer.clip_bound=7")
    facts.write(directory / "facts.json")
    run, compare, several = fr.suggest("mine-1").commands
    assert run == "fednar run mine.yaml seed=3 regularizer.clip_bound=1.8"
    assert compare == "fednar compare mine.yaml seed=3 regularizer.clip_bound=1.8"
    assert several == f"{compare} 'compare.weight_decays=[0.001,0.01,0.1]'"
    Path("mine.yaml").write_text(text.replace("rounds: 2", "rounds: 3"))
    assert "runs/mine-1/experiment.yaml" in fr.suggest("mine-1").commands[0]
    Path("mine.yaml").unlink()
    assert "runs/mine-1/experiment.yaml" in fr.suggest("mine-1").commands[0]


def test_a_run_without_norms_is_refused(tmp_path):
    record = RoundRecord(round_index=0, metrics={}, client_ids=(), exclusions={})
    with pytest.raises(fr.BadInput, match="no round with step norms"):
        fr.suggest(write_run(tmp_path / "r-1", build_experiment(), [record]))


def test_a_run_that_clipped_nothing_says_so():
    unclipped = [build_record(0, np.array([1.0, 2.3]))]
    text = "no step was clipped (largest step norm 2.3, bound 10): FedNAR acted as coupled decay; see fednar suggest"
    assert explain_no_clipping("fednar", unclipped) == text
    assert explain_no_clipping("coupled", unclipped) is None
    assert explain_no_clipping("fednar", [build_record(0, np.array([1.0]), clip_fraction=0.1)]) is None


def test_variants_are_identical_only_if_nothing_was_clipped(federation):
    def train(name: str, bound: float) -> list[Outcome]:
        experiment = build_experiment(name=name, clip_bound=bound, weight_decay=0.1)
        return [Outcome(tuple(r.record() for r in fr.iter_rounds(experiment, federation=federation)), ())]

    names = ("fednar", "decoupled", "coupled", "none")
    (group,) = find_identical({Variant(0.1, name): train(name, 1000) for name in names})
    assert [variant.regularizer for variant in group] == ["fednar", "decoupled", "coupled"]
    assert describe_identical(group, "r-1").startswith("fednar, decoupled and coupled are the same training at")
    assert find_identical({Variant(0.1, name): train(name, 0.01) for name in names}) == []
