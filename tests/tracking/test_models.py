"""The saved model of a run accepts raw inputs of the data, and its predictions equal those that the run evaluated."""

import copy
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import fednar_ray as fr
from fednar_ray.core import fednar_table_schema
from fednar_ray.core.errors import ModelError
from fednar_ray.core.fednar_table_schema import ColumnSchema, TableSchema
from fednar_ray.core.preprocessing import ImagePreprocessing
from fednar_ray.data.sources.arrow_columns import MISSING_IN_TEXT
from fednar_ray.data.sources.folder import list_client_files
from fednar_ray.data.sources.moments import Moments
from fednar_ray.data.transforms import Transform
from fednar_ray.experiments.prepare import prepare
from fednar_ray.models import build_model
from fednar_ray.tracking.models import save_model
from tests.conftest import set_mlflow_store
from tests.support.drawn import draw
from tests.support.stores import create_store

NAMES = ("age", "time", "dose")
SECONDS = 1.7e9  # since 1970; float32 represents it to 128 s


def write_wards(directory: Path) -> None:
    """Writes columns of integers, of times with small differences, and with gaps; the label is between them."""
    rng = np.random.default_rng(3)
    directory.mkdir()
    for name, size in (("a", 60), ("b", 45), ("C", 51)):
        age, time, dose = rng.integers(20, 90, size), SECONDS + rng.normal(0, 60, size), rng.normal(3, 0.5, size)
        ill = (age - 55) / 20 + (time - SECONDS) / 60 + rng.normal(0, 0.3, size) > 0
        table = pd.DataFrame({"age": age, "time": time, "ill": ill.astype(int), "dose": dose})
        table.loc[rng.random(size) < 0.2, "dose"] = np.nan
        table.to_csv(directory / f"{name}.csv", index=False)


def build_experiment(folder: Path, **sections: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "name": "wards",
            "model": {"name": "mlp", "hidden": 8},
            "federation": {"rounds": 3, "local_epochs": 2, "batch_size": 8},
            "algorithm": {"local_lr": 0.3},
            "execution": {"placement": "serial"},
            "tracking": {"uri": create_store(folder / "m.db")},
            **sections,
        }
    )


def build_table_data(folder: Path, **data: Any) -> dict[str, Any]:
    given = {"source": "folder", "directory": str(folder / "wards"), "label": "ill", "task": "binary"}
    return {**given, "missing": "mean", "test_share": 0.3, **data}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    folder: Path
    experiment: fr.Experiment
    result: fr.Result
    x: np.ndarray  # the raw held-out rows of all clients
    y: np.ndarray

    @property
    def table(self) -> pd.DataFrame:
        """The rows as pandas reads them, with integers in ``age``."""
        table = pd.DataFrame(self.x, columns=list(NAMES), index=np.arange(len(self.x)) + 100)
        return table.astype({"age": int})

    @property
    def saved(self) -> str:
        return str(self.result.directory / "model")

    def assert_as_evaluated(self, logits: Any) -> None:
        """Asserts that accuracy is that of the run, and so is the loss up to the order of a sum."""
        found, y = np.asarray(logits, dtype=np.float32).reshape(-1), self.y
        assert ((found > 0) == y).mean() == self.result.metrics["test_accuracy"]
        loss = binary_cross_entropy_with_logits(torch.tensor(found), torch.tensor(y, dtype=torch.float32))
        assert float(loss) == pytest.approx(self.result.metrics["test_loss"], rel=1e-5)


def find_logits(predicted: pd.DataFrame) -> np.ndarray:
    """Returns the logits of class 1, from the probabilities of both classes."""
    return np.log(predicted["probability_1"] / predicted["probability_0"]).to_numpy()


def load_held_out(chosen: fr.Experiment) -> tuple[np.ndarray, np.ndarray]:
    assert chosen.data is not None
    rows = [file.read() for file in list_client_files(chosen.data)]
    return np.concatenate([part.test_x for part in rows]), np.concatenate([part.test_y for part in rows])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("saved")
    write_wards(folder / "wards")
    chosen = build_experiment(folder, data=build_table_data(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = fr.run(chosen)
    x, y = load_held_out(chosen)
    assert np.isnan(x).any()
    assert result.metrics["test_accuracy"] > 0.75
    return Trained(folder=folder, experiment=chosen, result=result, x=x, y=y)


# ——— tables ———


def test_the_model_of_the_result_accepts_raw_rows_of_any_number_type(trained: Trained) -> None:
    with torch.no_grad():
        trained.assert_as_evaluated(trained.result.model(torch.from_numpy(trained.x)))
        whole = torch.tensor([[50, 1_700_000_000, 3]])
        assert torch.equal(trained.result.model(whole), trained.result.model(whole.double()))


def test_its_preprocessing_gives_exactly_the_values_that_the_run_trains_on(trained: Trained) -> None:
    _, splits = prepare(trained.experiment).federation.load()
    inputs = trained.result.model.preprocessing(torch.from_numpy(trained.x))
    assert inputs.numpy().tobytes() == splits["test"].x.tobytes()


def test_the_model_scales_by_the_training_examples_of_all_clients(trained: Trained) -> None:
    assert trained.experiment.data is not None
    rows = np.concatenate([file.read().train_x for file in list_client_files(trained.experiment.data)])
    part = trained.result.model.preprocessing
    np.testing.assert_allclose(part.mean, np.nanmean(rows, axis=0), rtol=1e-12)
    np.testing.assert_allclose(part.scale, np.nanstd(rows, axis=0), rtol=1e-9)
    np.testing.assert_allclose(part.fill, np.nanmean(rows, axis=0), rtol=1e-12)


def test_mlflow_predicts_from_a_table_with_its_columns_in_any_order(trained: Trained) -> None:
    model = mlflow.pyfunc.load_model(trained.saved)
    table = trained.table
    expected = model.predict(table)
    trained.assert_as_evaluated(find_logits(expected))
    assert expected.index.equals(table.index)
    turned = table[list(NAMES[::-1])].assign(ill=trained.y)
    pd.testing.assert_frame_equal(model.predict(turned), expected)
    pd.testing.assert_frame_equal(model.predict(table.convert_dtypes()), expected)  # pd.NA, Int64
    pd.testing.assert_frame_equal(model.predict(table.astype(object).where(table.notna(), None)), expected)
    one = model.predict(table.iloc[[4]])
    pd.testing.assert_frame_equal(one, expected.iloc[[4]], rtol=1e-5)


def test_mlflow_refuses_a_table_with_a_missing_column_or_with_text(trained: Trained) -> None:
    model = mlflow.pyfunc.load_model(trained.saved)
    with pytest.raises(mlflow.MlflowException, match=r"missing inputs \['time'\]"):
        model.predict(trained.table.drop(columns="time"))
    with pytest.raises(ValueError, match="column dose: could not convert string to float: 'much'; numbers are needed"):
        model.predict(trained.table.assign(dose="much"))
    for values, kind in (
        (pd.Timestamp("2020-01-01"), "datetime64"),
        (1j, "complex128"),
        (pd.Timedelta(1), "timedelta"),
    ):
        with pytest.raises(ValueError, match=f"column dose: holds {kind}.*; real numbers are needed"):
            model.predict(trained.table.assign(dose=values))


def test_values_missing_in_files_are_missing_in_tables_too(trained: Trained) -> None:
    """``pd.read_csv`` keeps ``?`` as text, and then also the other values of the column."""
    assert tuple(MISSING_IN_TEXT) == fednar_table_schema.MISSING
    model = mlflow.pyfunc.load_model(trained.saved)
    expected = model.predict(trained.table)
    for text in ("?", " NA ", ""):
        written = trained.table.astype(object).where(trained.table.notna(), text)
        pd.testing.assert_frame_equal(model.predict(written), expected)
        pd.testing.assert_frame_equal(model.predict(written.astype(str)), expected)
        pd.testing.assert_frame_equal(model.predict(written.astype(str).astype("category")), expected)


def test_the_logged_model_has_columns_and_an_example_and_the_torch_model(trained: Trained) -> None:
    with set_mlflow_store(create_store(trained.folder / "m.db")):
        uri = f"runs:/{trained.result.run_id}/model"
        info = mlflow.models.get_model_info(uri)
        assert tuple(info.signature.inputs.input_names()) == NAMES
        assert info.signature.outputs.input_names() == ["prediction", "probability_0", "probability_1"]
        example = mlflow.models.Model.load(uri).load_input_example()
        assert tuple(example.columns) == NAMES
        assert not set(example["time"]) & set(trained.table["time"])  # no client holds it
        assert np.isfinite(mlflow.pyfunc.load_model(uri).predict(example)).all(axis=None)
        with torch.no_grad():
            trained.assert_as_evaluated(mlflow.pytorch.load_model(uri)(torch.from_numpy(trained.x)))


def test_the_state_dict_contains_the_preprocessing_and_is_loaded_without_code(trained: Trained) -> None:
    state = torch.load(trained.result.directory / "model.pt", weights_only=True)
    assert {name.split(".")[0] for name in state} == {"preprocessing", "model"}
    network = build_model(trained.experiment.model, (3,), 1, seed=5)
    model = fr.load_model(trained.result.directory, network)
    assert not model.training
    with torch.no_grad():
        trained.assert_as_evaluated(model(torch.from_numpy(trained.x)))
    fresh = copy.deepcopy(trained.result.model)
    for buffer in fresh.buffers():
        buffer.zero_()
    fresh.load_state_dict(state)  # it also works without this package
    with torch.no_grad():
        trained.assert_as_evaluated(fresh(torch.from_numpy(trained.x)))
    with pytest.raises(ModelError, match=r"model\.pt: does not fit the model: of another shape: 1\.weight"):
        fr.load_model(trained.result.directory / "model.pt", build_model(trained.experiment.model, (4,), 1, seed=5))


def test_a_run_can_start_from_the_network_of_another_runs_model(trained: Trained) -> None:
    weights = str(trained.result.directory / "model.pt")
    started = build_experiment(
        trained.folder, data=build_table_data(trained.folder), model={"name": "mlp", "hidden": 8, "weights": weights}
    )
    own, given = prepare(started).model.state_dict(), trained.result.model.model.state_dict()
    assert all(torch.equal(own[name], given[name]) for name in given)


@pytest.mark.usefixtures("long_computation")
def test_a_finished_and_a_resumed_run_have_the_same_model(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x = torch.from_numpy(trained.x)
    finished = fr.run(trained.experiment, resume=str(trained.result.directory))
    data, federation = build_table_data(trained.folder), trained.experiment.federation
    started = fr.run(
        build_experiment(tmp_path, data=data, federation=federation.model_copy(update={"rounds": 2}).model_dump())
    )
    resumed = fr.run(
        build_experiment(tmp_path, data=data, federation=federation.model_dump()), resume=str(started.directory)
    )
    with torch.no_grad():
        assert torch.equal(finished.model(x), trained.result.model(x))
        assert torch.equal(resumed.model(x), trained.result.model(x))
        assert not torch.equal(started.model(x), trained.result.model(x))
        assert torch.equal(mlflow.pytorch.load_model(str(resumed.directory / "model"))(x), resumed.model(x))


@pytest.mark.usefixtures("long_computation")
def test_silos_save_the_same_model_as_a_folder_of_their_files(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    silos = {path.stem: {"data": str(path)} for path in (trained.folder / "wards").iterdir()}
    data = {key: value for key, value in build_table_data(trained.folder).items() if key != "directory"}
    result = fr.run(
        build_experiment(tmp_path, data=data, execution={"placement": "serial", "silos": silos, "vectorize": 1})
    )
    alone = fr.run(
        build_experiment(
            tmp_path, data=build_table_data(trained.folder), execution={"placement": "serial", "vectorize": 1}
        )
    )
    for ours, theirs in zip(result.model.state_dict().values(), alone.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    saved = mlflow.pyfunc.load_model(str(result.directory / "model"))
    predicted = saved.predict(trained.table)["prediction"].to_numpy()
    assert (predicted == trained.y).mean() == result.metrics["test_accuracy"]


@pytest.mark.parametrize(
    ("data", "fills"),
    [
        ({"standardize": False}, True),
        ({"missing": "drop"}, False),
        ({"missing": "drop", "standardize": False}, False),
        ({"features": ["dose", "age"]}, True),
        ({"features": ["age"], "missing": "refuse"}, False),
    ],
)
def test_columns_that_the_settings_omit_are_omitted_from_the_model_too(
    data: dict[str, Any], fills: bool, trained: Trained
) -> None:
    chosen = build_experiment(trained.folder, data=build_table_data(trained.folder, **data))
    federation = prepare(chosen).federation
    x, y = load_held_out(chosen)
    assert federation.preprocessing is not None
    module = federation.preprocessing.build_module()
    _, splits = federation.load()
    assert module(torch.from_numpy(x)).numpy().tobytes() == splits["test"].x.tobytes()
    assert len(y) == len(x)
    gap = module(torch.full((1, x.shape[1]), torch.nan))
    assert bool(gap.isfinite().all()) == fills
    assert federation.preprocessing.columns == tuple(data.get("features", NAMES))


def test_a_model_of_tables_that_cannot_be_exported_is_a_pickle_with_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    example = np.array([[1.0, 2.0], [3.0, 4.0]])
    model = torch.nn.Sequential(torch.nn.Linear(2, 1).double(), Branching())
    schema = TableSchema(columns=(ColumnSchema(name="u"), ColumnSchema(name="v")), task="regression")
    save_model(model.eval(), example, tmp_path / "model", schema)
    assert (tmp_path / "model" / "data" / "data" / "model.pth").exists()
    found = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(pd.DataFrame({"v": [2, 4], "u": [1.0, 3.0]}))
    np.testing.assert_array_equal(found, model(torch.from_numpy(example)).detach().numpy())


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.detach().sum()) > 0 else -x


def test_arrays_with_several_dimensions_have_no_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "wards").mkdir()
    for name in ("a", "b"):
        x = 50 + 9 * rng.normal(size=(30, 2, 3))
        np.savez(tmp_path / "wards" / f"{name}.npz", x=x, ill=(x.mean(axis=(1, 2)) > 50).astype(int))
    chosen = build_experiment(tmp_path, data=build_table_data(tmp_path))
    result = fr.run(chosen)
    x, y = load_held_out(chosen)
    found = mlflow.pyfunc.load_model(str(result.directory / "model")).predict(x)
    assert ((found[:, 0] > 0) == y).mean() == result.metrics["test_accuracy"]


# ——— images, and models without preprocessing ———


def test_a_model_of_images_accepts_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=120)
    images = np.clip(rng.normal(90 + 40 * y[:, None, None], 30, size=(120, 6, 6)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "i.npz", train_x=images[:80], train_y=y[:80], test_x=images[80:], test_y=y[80:])
    data = {"source": "npz", "path": str(tmp_path / "i.npz"), "partition": {"clients": 3}}
    result = fr.run(build_experiment(tmp_path, data=data))
    raw = images[80:, None]  # [n, channels, height, width]
    saved = mlflow.pyfunc.load_model(str(result.directory / "model"))
    assert saved.metadata.signature.inputs.inputs[0].type == np.uint8
    rebuilt = fr.load_model(result.directory, build_model(build_experiment(tmp_path).model, (1, 6, 6), 3, seed=9))
    with torch.no_grad():
        outputs = [torch.from_numpy(saved.predict(raw)), *(m(torch.from_numpy(raw)) for m in (result.model, rebuilt))]
    assert result.metrics["test_accuracy"] > 0.6
    for found in outputs:
        assert float((found.argmax(dim=1).numpy() == y[80:]).mean()) == result.metrics["test_accuracy"]
        loss = float(cross_entropy(found, torch.from_numpy(y[80:])))
        assert loss == pytest.approx(result.metrics["test_loss"], rel=1e-5)


def test_images_are_scaled_to_exactly_the_values_of_training() -> None:
    numbers = {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262)}
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(40, 3, 8, 8), dtype=np.uint8))
    scaled = ImagePreprocessing(**numbers).build_module()(images)
    assert torch.equal(scaled, Transform(**numbers).normalize(images))


def test_a_model_without_preprocessing_is_the_network_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(20, 2)).astype(np.float32), rng.integers(2, size=20)) for _ in range(2)]
    federation = fr.Federation(pairs, (pairs[0][0][:1], pairs[0][1][:1]))
    result = fr.run(build_experiment(tmp_path), federation=federation, model=torch.nn.Linear(2, 2))
    assert isinstance(result.model, torch.nn.Linear)
    assert set(torch.load(result.directory / "model.pt", weights_only=True)) == {"weight", "bias"}
    found = mlflow.pyfunc.load_model(str(result.directory / "model")).predict(
        pairs[1][0]
    )  # one test example, any batch
    np.testing.assert_allclose(found, result.model(torch.from_numpy(pairs[1][0])).detach(), rtol=1e-6)


# ——— means and deviations from sums ———


@draw(60)
@given(
    value=st.sampled_from([14.6, 0.1, 1e9 + 0.1, -3.3e-7, 1.7e18, 36.6, 1e-300, 0.0]),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8),
)
def test_a_constant_column_is_scaled_by_one(value: float, sizes: list[int]) -> None:
    together = merge([Moments.of(np.full((size, 1), value)) for size in sizes])
    assert (together.mean[0], together.deviation[0]) == (value, 1)


def merge(parts: list[Moments]) -> Moments:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


def test_a_column_that_is_constant_up_to_rounding_is_scaled_by_one() -> None:
    column = np.array([0.3, 0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2] * 50)[:, None]
    assert np.ptp(column) > 0
    assert Moments.of(column).deviation[0] == 1
    assert merge([Moments.of(part) for part in np.array_split(column, 7)]).deviation[0] == 1
    assert merge([Moments.of(np.full((9, 1), 0.3)), Moments.of(np.full((9, 1), 0.1 + 0.2))]).deviation[0] == 1


@pytest.mark.parametrize("offset", [0.0, 14.6, 1e9, -1e9, 1.7e9, 1e12, 1.7e18])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("clients", [1, 7, 100])
def test_the_deviation_equals_that_of_numpy_for_numbers_far_from_zero(
    offset: float, spread: float, clients: int
) -> None:
    rows = offset + spread * np.random.default_rng(1).normal(size=(3000, 2))
    rows[::7, 1] = np.nan
    apart = rows - offset  # exact for a large offset, so that NumPy's two passes are
    if np.nanstd(apart) <= 4 * np.spacing(abs(offset)):
        return  # float64 cannot represent such differences
    together = merge([Moments.of(part) for part in np.array_split(rows, clients)])
    np.testing.assert_allclose(together.deviation, np.nanstd(apart, axis=0), rtol=1e-9)
    error = np.abs((together.mean - offset) - np.nanmean(apart, axis=0))
    assert (error <= np.spacing(abs(offset)) + 1e-12 * spread).all()


@pytest.mark.parametrize("odd", range(0, 20, 4))
def test_one_outlier_in_a_constant_column_remains_small_after_scaling(odd: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "wards").mkdir()
    for ward in "abc":
        table = pd.DataFrame({"marker": rng.normal(size=20), "temp": 14.6, "ill": rng.integers(2, size=20)})
        table.loc[odd, "temp"] = 15.1 if ward == "c" else 14.6
        table.to_csv(tmp_path / "wards" / f"{ward}.csv", index=False)
    federation = prepare(build_experiment(tmp_path, data=build_table_data(tmp_path))).federation
    shards, splits = federation.load()
    temperatures = np.concatenate([shards.examples.x[:, 1], splits["test"].x[:, 1]])
    assert np.abs(temperatures).max() < 10
    if len(np.unique(shards.examples.x[:, 1])) == 1:  # the outlier is held out
        assert splits["test"].x[:, 1].max() == np.float32(15.1 - 14.6)


SAVES_A_MODEL = """
import logging, sys
from pathlib import Path
import numpy, torch
from fednar_ray.tracking.models import save_model
save_model(torch.nn.Linear(2, 1), numpy.zeros((2, 2), numpy.float32), Path(sys.argv[1]) / "model")
print(logging.getLogger().level, logging.getLogger().handlers)
"""


@pytest.mark.usefixtures("processes")
def test_saving_a_model_leaves_the_root_logger_as_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVES_A_MODEL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{logging.WARNING} []"


def test_saving_a_model_does_not_read_the_files_of_all_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.utils.requirements_utils._MODULES_TO_PACKAGES", None)
    save_model(torch.nn.Linear(2, 1), np.zeros((2, 2), dtype=np.float32), tmp_path / "model")
    assert mlflow.utils.requirements_utils._MODULES_TO_PACKAGES is None
    wanted = [f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"]
    assert (tmp_path / "model" / "requirements.txt").read_text().split() == wanted
