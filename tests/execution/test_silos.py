"""Silos: clients that are pinned to the nodes with their data, whose files the driver never opens."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fednar_ray as fr
from fednar_ray.config import ExecutionSettings
from fednar_ray.core.errors import CapacityError, DataError
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.data.files import FederationOfFiles
from fednar_ray.data.sources.client_files import list_silo_files
from fednar_ray.execution.capacity import Footprint
from fednar_ray.execution.silos import plan_silos
from fednar_ray.experiments.iter_rounds import build_initial_state, train_rounds
from fednar_ray.experiments.placement import open_pool, plan_execution
from fednar_ray.experiments.prepare import prepare
from tests.support.cluster_nodes import run_in_own_process
from tests.support.stores import create_store

HEAD, NODE_A, NODE_B = "127.0.0.2", "127.0.0.3", "127.0.0.4"  # Ray replaces 127.0.0.1, but no other loopback address
SIZES = {"north": 40, "south": 31}


def write_files(folder: Path) -> dict[str, Path]:
    """Writes one directory per silo, each with one file."""
    rng, files = np.random.default_rng(5), {}
    for name, size in SIZES.items():
        x = rng.normal(3, 2, size=(size, 2))
        y = (x @ [1.0, -1.0] + rng.normal(size=size) > 0).astype(int)
        (folder / name).mkdir()
        files[name] = folder / name / "rows.npz"  # numpy opens it in Python, so an audit hook sees it
        np.savez(files[name], age=x[:, 0], dose=x[:, 1], ill=y)
    (folder / "both").mkdir()
    for name in ("a.csv", "b.csv"):
        (folder / "both" / name).write_text("age,dose,ill\n1,2,0\n")
    return files


def build_experiment(silos: dict[str, Any], data: dict[str, Any] | None = None, **execution: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "data": {
                "source": "folder", "label": "ill", "task": "binary", "features": ["age", "dose"], "validation": 0.2,
                **(data or {}),
            },
            "model": {"name": "logistic"},
            "federation": {"rounds": 3, "local_steps": 4, "batch_size": 8},
            "algorithm": {"name": "scaffold"},
            "evaluation": {"federated": True},
            "execution": {"gpus_per_actor": 0, "cpus_per_actor": 0.5, "silos": silos, **execution},
        }
    )  # fmt: skip


def describe_silos(files: dict[str, Path], *, pinned: bool = False) -> dict[str, Any]:
    return {
        name: {"data": str(file), "resources": {f"silo_{name}": 1} if pinned else {}} for name, file in files.items()
    }


def summarize(report: fr.RoundReport) -> dict[str, Any]:
    metrics = {name: value for name, value in report.metrics.items() if "seconds" not in name}
    return {"parameters": report.parameters.tobytes().hex(), "metrics": metrics}


# ——— two nodes ———


def train_on_two_nodes(folder: Path) -> None:
    """Trains on two nodes that differ only in the resource of a silo. Prints what happened."""
    import ray
    from ray.cluster_utils import Cluster

    opened: list[str] = []
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
    head = {"num_cpus": 0, "node_ip_address": HEAD, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for name, address in zip(SIZES, (NODE_A, NODE_B), strict=True):
        cluster.add_node(num_cpus=1, resources={f"silo_{name}": 1}, node_ip_address=address)
    ray.init(address=cluster.address, log_to_driver=False)
    files = {name: next((folder / name).iterdir()) for name in SIZES}
    chosen, session = build_experiment(describe_silos(files, pinned=True)), fr.RaySession()
    prepared = prepare(chosen, session=session)
    resolved = plan_execution(prepared, session)
    with open_pool(prepared, resolved, session) as pool:
        hosts = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        found = [hosts[where.node_id] for where in pool.list_actors()]
        *_, last = train_rounds(prepared, resolved, pool, build_initial_state(prepared))
    refusals = [
        find_refusal(
            build_experiment(describe_silos({"north": folder / "both", "south": folder / "gone.csv"}, pinned=True)),
            session,
        ),
        find_refusal(
            build_experiment({"north": {"data": "/x", "resources": {"silo_west": 1}}, "south": {"data": "/x"}}), session
        ),
    ]
    seen = list(opened)
    prepare(build_experiment(describe_silos(files), placement="serial"))
    ray.shutdown()
    cluster.shutdown()
    paths = [sorted({path for path in each if path.startswith(str(folder))}) for each in (seen, opened)]
    print(json.dumps({**summarize(last), "hosts": found, "refusals": refusals, "opened": paths}))


def find_refusal(chosen: fr.Experiment, session: fr.RaySession) -> str:
    try:
        prepare(chosen, session=session)
    except fr.BadInput as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def on_two_nodes(processes: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Any]]:
    """Returns the silos' files, and the result of training on their nodes."""
    folder = tmp_path_factory.mktemp("silos")
    files = write_files(folder)
    return files, run_in_own_process(train_on_two_nodes, folder)


@pytest.mark.usefixtures("own_ray")
def test_each_silo_trains_on_its_own_node_and_the_driver_opens_no_file(
    on_two_nodes: tuple[dict[str, Path], dict[str, Any]],
) -> None:
    files, found = on_two_nodes
    assert found["hosts"] == [NODE_A, NODE_B]
    on_nodes, serially = found["opened"]
    assert on_nodes == []
    assert serially == sorted(map(str, files.values()))  # the hook does see a driver that reads them


@pytest.mark.usefixtures("own_ray")
def test_silos_give_the_bytes_and_metrics_of_the_same_files_read_serially(
    on_two_nodes: tuple[dict[str, Path], dict[str, Any]],
) -> None:
    files, found = on_two_nodes
    *_, serial = fr.iter_rounds(build_experiment(describe_silos(files), placement="serial"))
    assert found["parameters"] == summarize(serial)["parameters"]
    assert found["metrics"] == summarize(serial)["metrics"]
    assert {"test_auc", "validation_accuracy", "client_accuracy_mean"} <= found["metrics"].keys()


@pytest.mark.usefixtures("own_ray")
def test_missing_resources_of_a_silo_are_reported_before_training(
    on_two_nodes: tuple[dict[str, Path], dict[str, Any]],
) -> None:
    files, found = on_two_nodes
    unreadable, missing = found["refusals"]
    folder = files["north"].parents[1]
    assert unreadable.splitlines() == [
        f"execution.silos.north.data: {folder / 'both'}: holds a.csv, b.csv; a client has exactly one file",
        f"execution.silos.south.data: {folder / 'gone.csv'}: there is no such file",
    ]
    assert missing.splitlines() == [
        "execution.silos.north: no node has 1 silo_west and 0.5 CPU",
        "the nodes have 1 CPU and 1 silo_north; 1 CPU and 1 silo_south; nothing; "
        "execution.autoscale=true waits for more",
    ]


def test_a_silo_that_is_unavailable_for_too_long_is_excluded(tmp_path: Path, session: fr.RaySession) -> None:
    import ray

    chosen = build_experiment(describe_silos(write_files(tmp_path)))
    more_rounds = {"federation": chosen.federation.model_copy(update={"rounds": 10})}
    rarely_evaluated = {"evaluation": chosen.evaluation.model_copy(update={"every": 10})}
    prepared = prepare(chosen.model_copy(update=more_rounds | rarely_evaluated), session=session)
    resolved = plan_execution(prepared, session)
    with open_pool(prepared, resolved, session) as pool:
        assert len(pool.list_actors()) == 2
        rounds = train_rounds(prepared, resolved, pool, build_initial_state(prepared), splits=())
        assert next(rounds).exclusions == {}
        (first, second), slots = pool._plan.pins, pool._slots
        slots._plan = replace(slots._plan, pins=(first, replace(second, resources={"gone": 1})))
        pool._limits = replace(pool._limits, start_seconds=0.5)
        ray.kill(slots[1].actor)
        for _ in range(2):
            assert next(rounds).exclusions == {
                1: Exclusion(ExclusionReason.FAILED, "silo south has had no actor for 0.5 s")
            }


def test_a_run_on_silos_resumes_serially_to_the_same_bytes(
    tmp_path: Path, session: fr.RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files, kept = write_files(tmp_path), {"tracking": {"uri": create_store(tmp_path / "mlflow.db")}}

    def build(rounds: int, **execution: Any) -> fr.Experiment:
        section = build_experiment(describe_silos(files), **execution).model_dump(exclude_none=True)
        return fr.Experiment.model_validate(
            {**section, **kept, "federation": {**section["federation"], "rounds": rounds}}
        )

    whole = list(fr.iter_rounds(build(3, placement="serial")))
    first = fr.run(build(2), session=session)
    assert (first.placement, len(first.places)) == ("dedicated", 2)
    result = fr.run(build(3, placement="serial"), resume_newest=True)
    assert (result.resumed_from_round, result.placement) == (2, "serial")
    assert result.parameters.tobytes() == whole[-1].parameters.tobytes()
    for end in (first, result):  # the model contains the scaling that was learned at the silos: it accepts raw rows
        rows = [file.read() for file in list_silo_files(end.experiment.data, {n: str(f) for n, f in files.items()})]
        x, y = (np.concatenate([getattr(part, name) for part in rows]) for name in ("test_x", "test_y"))
        ill = end.model(torch.from_numpy(x)).detach().numpy()[:, 0] > 0
        assert (ill == y).mean() == end.metrics["test_accuracy"]


# ——— which nodes can host which silos ———

FOOTPRINT = Footprint(model_bytes=0)  # 0.5 GB per actor


def build_node(**resources: float) -> dict[str, float]:
    return {"CPU": 2.0, "GPU": 0.0, "memory": 8e9, **resources}


def build_settings(silos: dict[str, dict[str, float]], **more: Any) -> ExecutionSettings:
    given = {name: {"data": "/d", "resources": resources} for name, resources in silos.items()}
    return ExecutionSettings.model_validate({"silos": given, **more})


def test_a_silo_gets_its_resources_and_a_share_of_the_gpus_of_its_node() -> None:
    chosen = build_settings({"a": {"x": 1}, "b": {"y": 0.5}, "c": {"y": 0.5}})
    plan = plan_silos(chosen, ("a", "b", "c"), [build_node(x=1), build_node(y=1, GPU=1)], FOOTPRINT)
    assert (plan.count, plan.cpus) == (3, 1)
    assert [(pin.silo, pin.resources, pin.gpus) for pin in plan.pins] == [
        ("a", {"x": 1}, 0), ("b", {"y": 0.5}, 0.5), ("c", {"y": 0.5}, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("silos", "more", "nodes", "problem"),
    [
        (
            {"a": {"x": 2}},
            {},
            [build_node(x=1), build_node()],
            "silos.a: no node has 2 x and 1 CPU\nthe nodes have 2 CPU; 2 CPU and",
        ),
        ({"a": {"x": 1}}, {"cpus_per_actor": 4}, [build_node(x=1)], "silos.a: no node has 1 x and 4 CPU"),
        ({"a": {"x": 1}}, {"gpus_per_actor": 1}, [build_node(x=1)], "silos.a: no node has 1 x and 1 CPU and 1 GPU"),
        (
            {"a": {"x": 1}, "b": {"x": 1}},
            {},
            [build_node(x=1)],
            "silos.b: no room beside the other silos for its actor",
        ),
        ({"a": {}, "b": {"x": 1}}, {}, [build_node(x=1, CPU=1)], "silos.b: no room beside the other silos"),
        ({"a": {}}, {}, [build_node(memory=4e8)], "silos.a: no room beside the other silos for its actor (0.5 GB)"),
    ],
)
def test_silos_that_fit_on_no_node_are_refused_or_wait_for_one(
    silos: dict[str, dict[str, float]], more: dict[str, Any], nodes: list[dict[str, float]], problem: str
) -> None:
    with pytest.raises(CapacityError, match=re.escape(problem)):
        plan_silos(build_settings(silos, **more), tuple(silos), nodes, FOOTPRINT)
    growing = plan_silos(build_settings(silos, autoscale=True, **more), tuple(silos), nodes, FOOTPRINT)
    assert (growing.count, growing.growing) == (len(silos), True)


def test_a_silo_that_fits_on_one_node_is_placed_before_one_that_fits_on_all() -> None:
    plan_silos(
        build_settings({"a": {}, "b": {"x": 1}}), ("a", "b"), [build_node(x=1, CPU=1), build_node(CPU=1)], FOOTPRINT
    )


# ——— settings ———


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"execution": {"placement": "pooled"}}, "execution.placement: 'pooled': moves examples between nodes"),
        ({"execution": {"vectorize": 2}}, "execution.vectorize: 2: a silo trains its one client"),
        (
            {"execution": {"strategy": "pack"}},
            "execution.strategy: 'pack': execution.silos places the actors; set only one",
        ),
        ({"data": {"directory": "/d"}}, "data.directory: '/d': execution.silos says where the files are; set only"),
        ({"data": {"source": "digits"}}, "execution.silos: 'a': needs data.source: folder"),
        ({"silos": None}, "data.directory: None: folder needs the directory of its files, or execution.silos"),
        ({"silos": {"a b": {"data": "/d"}}}, "the name of a silo may contain only letters, digits, - and _"),
        ({"silos": {"a": {"data": "d"}}}, "should be an absolute path on the silo's node"),
        ({"silos": {"a": {"data": "/d", "resource": {}}}}, "unknown key; did you mean resources?"),
        ({"silos": {"a": {"data": "/d", "resources": {"GPU": 1}}}}, "see cpus_per_actor, gpus_per_actor"),
        ({"silos": {"a": {"data": "/d", "resources": {"x": 0}}}}, "execution.silos.a.resources.x: 0 should be"),
    ],
)
def test_contradictory_settings_are_refused_with_a_remedy(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    import yaml

    section = {
        "data": {"source": "folder", **change.get("data", {})},
        "model": {"name": "logistic"},
        "federation": {"local_steps": 1},
        "execution": {"silos": change.get("silos", {"a": {"data": "/d"}}), **change.get("execution", {})},
    }
    if "source" in change.get("data", {}):
        section["data"]["partition"] = {"clients": 2}
    (tmp_path / "f.yaml").write_text(yaml.safe_dump({"experiment": section}))
    with pytest.raises(fr.BadInput, match=re.escape(problem)):
        fr.load(tmp_path / "f.yaml")


# ——— files of silos on this machine ———


def test_the_driver_receives_metrics_of_a_silo_but_no_example(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    known = prepare(build_experiment(describe_silos(files), placement="serial")).federation
    assert isinstance(known, FederationOfFiles)
    assert known.client_names == ("north", "south")
    for examples in (known.shards.examples, *known.splits().values()):
        assert not examples.x.any()
        assert not examples.y.any()
    shards, splits = known.load()
    assert shards.sizes.tolist() == known.shards.sizes.tolist()
    counts = [np.bincount(shards.only(i).examples.y, minlength=2).tolist() for i in (0, 1)]
    assert known.label_counts().tolist() == counts
    assert {name: len(split) for name, split in splits.items()} == {"test": 8 + 6, "validation": 11}


def test_silos_and_a_folder_of_the_same_files_train_to_the_same_bytes(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    (tmp_path / "folder").mkdir()
    for name, file in files.items():
        (tmp_path / "folder" / f"{name}{file.suffix}").write_bytes(file.read_bytes())
    by_silo = build_experiment(describe_silos(files), placement="serial")
    data = {**by_silo.model_dump(exclude_none=True)["data"], "directory": str(tmp_path / "folder")}
    execution = {"placement": "serial", "vectorize": 1}
    together = fr.Experiment.model_validate(
        {**by_silo.model_dump(exclude_none=True), "data": data, "execution": execution}
    )
    assert prepare(by_silo).federation.digest() == prepare(together).federation.digest()
    *_, one = fr.iter_rounds(by_silo)
    *_, other = fr.iter_rounds(together)
    assert one.parameters.tobytes() == other.parameters.tobytes()
    for metric in ("test_accuracy", "test_loss", "validation_loss", "client_accuracy_mean"):
        assert one.metrics[metric] == pytest.approx(other.metrics[metric], rel=1e-12)


def test_without_named_columns_all_silos_use_those_of_the_first(tmp_path: Path) -> None:
    for name, header in (("a", "u,v,y"), ("b", "w,v,y,u")):
        rows = "\n".join(",".join(str(i % 2) for _ in header.split(",")) for i in range(10))
        (tmp_path / f"{name}.csv").write_text(f"{header}\n{rows}\n")
    silos = {name: {"data": str(tmp_path / f"{name}.csv")} for name in ("b", "a")}
    data = {"features": None, "label": "y", "standardize": False}
    known = prepare(build_experiment(silos, data, placement="serial")).federation
    assert known.shards.examples.x.shape[1:] == (2,)


def test_a_file_that_changed_after_the_survey_is_refused(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    known = prepare(build_experiment(describe_silos(files), placement="serial")).federation
    files["south"].write_bytes(files["north"].read_bytes())
    with pytest.raises(DataError, match=r"south/rows\.npz: its rows changed since the run was started"):
        known.load()


def test_every_silo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    silos = {name: {"data": str(tmp_path / f"{name}.csv")} for name in ("a", "b")}
    with pytest.raises(DataError) as caught:
        prepare(build_experiment(silos, placement="serial"))
    assert str(caught.value).splitlines() == [
        f"execution.silos.{name}.data: {tmp_path / name}.csv: there is no such file" for name in ("a", "b")
    ]
