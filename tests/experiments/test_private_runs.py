"""Private runs as a user starts them: repeated, resumed, with a secret; what they write; and what is refused."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fednar_ray as fr
from fednar_ray.core.callbacks import RoundCallback
from fednar_ray.privacy.keys import find_key_file
from tests.conftest import build_small_federation

pytestmark = pytest.mark.usefixtures("recorded_runs")

SIZES = (7, 30, 12, 1, 21, 9, 14, 5)
NAMES = tuple(f"clinic-{letter}" for letter in "abcdefgh")
EVERY_ROUND = {"rounds": 5, "clients_per_round": 4, "sampling": "poisson", "local_steps": 2, "batch_size": 8}


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def build(rounds: int = 5, **privacy: Any) -> fr.Experiment:
    noise = {} if "epsilon" in privacy else {"noise_multiplier": 1.0}
    return fr.Experiment.model_validate(
        {
            "name": "private",
            "federation": {**EVERY_ROUND, "rounds": rounds},
            "execution": {"placement": "serial"},
            "checkpoint": {"every": 1},
            "privacy": {"delta": 0.01, **noise, **privacy},
        }
    )


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 3)


def run(experiment: fr.Experiment | None, **options: Any) -> fr.Result:
    return fr.run(experiment, federation=build_small_federation(SIZES), model=build_model(), **options)


class Crash(RoundCallback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_round_end(self, report: fr.RoundReport) -> None:
        if report.round_index + 1 == self.after:
            raise KeyboardInterrupt


def crash(experiment: fr.Experiment, after: int) -> Path:
    with pytest.raises(KeyboardInterrupt):
        run(experiment, callbacks=[Crash(after)])
    (directory,) = Path("runs").iterdir()
    return directory


def get_spending(result: fr.Result) -> list[float]:
    return [record.metrics["privacy/epsilon"] for record in result.history]


def test_a_secret_run_never_repeats_its_bytes() -> None:
    """A simulated one does: the test below trains one twice."""
    secret = [run(build(secret=True)) for _ in range(2)]
    assert len({each.parameters_sha256 for each in (run(build()), *secret)}) == 3
    assert get_spending(secret[0]) == get_spending(secret[1])


@pytest.mark.parametrize("privacy", [{}, {"bound": "adaptive"}, {"secret": True, "bound": "adaptive"}])
def test_a_resumed_run_ends_in_the_bytes_and_the_epsilon_of_one_that_never_stopped(privacy: dict[str, Any]) -> None:
    directory = crash(build(**privacy), after=3)
    copy = Path("kept")
    shutil.copytree(directory / "checkpoints", copy)
    resumed = run(None, resume=directory)
    assert resumed.resumed_from_round is not None
    if privacy.get("secret"):  # nothing else has its key: it is resumed twice from the same checkpoint
        again = run(None, resume=copy)
        assert again.parameters_sha256 == resumed.parameters_sha256
    else:
        whole = run(build(**privacy))
        assert whole.parameters_sha256 == resumed.parameters_sha256
        assert get_spending(whole) == get_spending(resumed)
        assert [r.metrics["privacy/bound"] for r in whole.history] == [
            r.metrics["privacy/bound"] for r in resumed.history
        ]


def test_a_secret_lies_in_one_file_of_this_user_without_which_the_run_is_not_resumed() -> None:
    directory = crash(build(secret=True), after=2)
    (path,) = Path("state/fednar/secrets").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_bytes()
    for file in (each for each in Path().rglob("*") if each.is_file() and each.resolve() != path.resolve()):
        content = file.read_bytes()
        assert secret not in content, file
        assert secret.hex().encode() not in content, file
    assert path.resolve() == find_key_file(path.name).resolve()
    moved = path.rename(path.with_name("elsewhere"))
    with pytest.raises(fr.BadInput, match=r"the secret of this run cannot be read.*copy the file"):
        run(None, resume=directory)
    moved.rename(path)
    assert len(run(None, resume=directory).history) == 5


def test_a_target_is_reached_at_the_end_and_cannot_be_stretched_over_more_rounds() -> None:
    result = run(build(epsilon=5.0))
    spent = get_spending(result)
    assert spent == sorted(spent)
    assert 4.99 <= spent[-1] <= 5.0
    with pytest.raises(fr.ConfigError, match=r"federation.rounds: 6: the noise was chosen for 5 rounds"):
        run(build(rounds=6, epsilon=5.0), resume=result.directory)


def test_a_private_run_resumes_with_its_own_settings_only_and_spends_more_in_more_rounds() -> None:
    directory = run(build()).directory
    changed = build(rounds=6).model_copy(
        update={"regularizer": build().regularizer.model_copy(update={"clip_bound": 3.0})}
    )
    with pytest.raises(fr.ConfigError, match=r"regularizer.clip_bound: 3.0, and was 10.0: .*start a new run"):
        run(changed, resume=directory, may_change=["regularizer"])
    spent = get_spending(run(build(rounds=6), resume=directory))
    assert spent[5] > spent[4]


FORBIDDEN = (
    b"train_loss", b"clip_fraction", b"effective_weight_decay", b"step_norm_p", b"client_seconds", b"virtual_seconds",
    b"clients_trained", b"clients_failed", b"clients_sampled", b"clients_late", b"clients_dropped_out",
    b"clients/trained", b"clients/failed", b"excluded", *(name.encode() for name in NAMES),
)  # fmt: skip


def test_no_file_of_a_run_tells_more_than_what_is_accounted() -> None:
    federation = build_small_federation(SIZES)
    federation.client_names = NAMES
    experiment = fr.Experiment.model_validate(
        {**build(secret=True, bound="adaptive").model_dump(exclude_none=True), "attacks": {"nan": 0.3}}
    )
    result = fr.run(experiment, federation=federation, model=build_model())
    files = [each for each in Path().rglob("*") if each.is_file()]
    assert {"metrics.jsonl", "report.html", "facts.json", "experiment.yaml"} <= {each.name for each in files}
    for file in files:
        if file.suffix == ".db":
            continue
        content = file.read_bytes()
        for word in FORBIDDEN:
            assert word not in content or file.name in ("experiment.yaml", "report.html"), (file, word)
    for line in (result.directory / "metrics.jsonl").read_text().splitlines():
        fields = json.loads(line)
        assert (fields["clients"], fields["exclusions"], fields["step_norms"], fields["norm_quantiles"]) == (
            [],
            {},
            {},
            [],
        )
    facts = json.loads((result.directory / "facts.json").read_text())
    assert (facts["examples"], facts["label_counts"]) == (0, [])
    assert not (result.directory / "clients.json").exists()
    page = (result.directory / "report.html").read_text()
    assert not any(name in page for name in NAMES)
    assert "Training loss" not in page


def test_mlflow_has_the_privacy_spent_and_nothing_of_clients() -> None:
    from mlflow import MlflowClient

    result = run(build(bound="adaptive"))
    stored = MlflowClient(result.tracking_uri).get_run(result.run_id)
    names = set(stored.data.metrics)
    assert {"privacy/epsilon", "privacy/bound", "privacy/simulated", "privacy/clipped_clients"} <= names
    assert not {name for name in names if name.startswith(("clients/", "loss/train", "fednar/step", "fednar/clip_f"))}
    history = MlflowClient(result.tracking_uri).get_metric_history(result.run_id, "privacy/epsilon")
    assert [point.value for point in sorted(history, key=lambda point: point.step)] == get_spending(result)
    contexts = {tag.value for data in stored.inputs.dataset_inputs for tag in data.tags}
    assert contexts == {"test"}
    assert "(simulated)" in stored.data.tags["mlflow.note.content"]
    assert "simulated" in (result.directory / "report.html").read_text()
    assert "(simulated)" in repr(result)


class WithStatistics(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(x))


def test_running_statistics_are_refused() -> None:
    with pytest.raises(fr.ConfigError, match=r"model: keeps running statistics of the clients' examples"):
        fr.run(build(), federation=build_small_federation(SIZES), model=WithStatistics())


@pytest.mark.parametrize(
    ("privacy", "problem"),
    [
        ({"delta": 0.2}, r"privacy.delta: 0.2 should be below 1/N = 0.125 for 8 clients"),
        ({"epsilon": 1e-7, "delta": 1e-9}, r"privacy.epsilon: 1e-07 is not reached by any noise"),
        (
            {"bound": {"name": "adaptive", "count_noise": 0.5}},
            r"privacy.bound.count_noise: 0.5 should be more than half",
        ),
    ],
)
def test_what_only_the_data_tell_is_refused_before_training(privacy: dict[str, Any], problem: str) -> None:
    with pytest.raises(fr.ConfigError, match=problem):
        run(build(**privacy))
    assert not Path("runs").exists()


def test_labels_that_are_scaled_by_the_data_are_refused(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},{i % 7},{'ab'[i % 2]},{i % 5}" for i in range(60))
    (tmp_path / "t.csv").write_text(f"age,weight,kind,y\n{rows}\n")
    data = {
        "source": "table",
        "path": str(tmp_path / "t.csv"),
        "standardize": False,
        "partition": {"kind": "iid", "clients": 8},
    }
    experiment = fr.Experiment.model_validate(
        {**build().model_dump(exclude_none=True), "data": data, "model": {"name": "mlp"}}
    )
    with pytest.raises(fr.ConfigError, match=r"data.features: kind: the list of their values is computed from"):
        fr.run(experiment)


def test_images_of_an_archive_need_public_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(64, 4, 4), dtype=np.uint8), np.arange(64) % 3
    np.savez(tmp_path / "a.npz", train_x=images, train_y=labels, test_x=images[:9], test_y=labels[:9])
    data = {"source": "npz", "path": str(tmp_path / "a.npz"), "partition": {"kind": "iid", "clients": 8}}
    base = {**build(rounds=1).model_dump(exclude_none=True), "model": {"name": "mlp"}}
    with pytest.raises(fr.ConfigError, match=r"data.normalization: without it, the mean and std of the images"):
        fr.run(fr.Experiment.model_validate({**base, "data": data}))
    public = {**data, "normalization": {"mean": [0.5], "std": [0.5]}}
    assert len(list(fr.iter_rounds(fr.Experiment.model_validate({**base, "data": public})))) == 1
