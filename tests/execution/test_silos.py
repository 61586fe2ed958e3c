"""Silos: clients pinned to the nodes that have their data, of which the driver opens nothing."""

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
from fednar_ray.data.sources.client_files import files_of_silos
from fednar_ray.execution.capacity import Footprint
from fednar_ray.execution.silos import plan_silos
from fednar_ray.experiments.iter_rounds import build_initial_state, train_rounds
from fednar_ray.experiments.placement import place, resolve
from fednar_ray.experiments.prepare import prepare
from tests.support.cluster_nodes import on_a_cluster_of_its_own

HEAD, SITE_A, SITE_B = "127.0.0.2", "127.0.0.3", "127.0.0.4"  # Ray takes an address other than 127.0.0.1 as given
SIZES = {"north": 40, "south": 31}


def write_sites(folder: Path) -> dict[str, Path]:
    """A directory of its own for each silo, with its one file."""
    rng, files = np.random.default_rng(5), {}
    for name, size in SIZES.items():
        x = rng.normal(3, 2, size=(size, 2))
        y = (x @ [1.0, -1.0] + rng.normal(size=size) > 0).astype(int)
        (folder / name).mkdir()
        files[name] = folder / name / "rows.npz"  # numpy opens it in Python, where an audit hook notices
        np.savez(files[name], age=x[:, 0], dose=x[:, 1], ill=y)
    (folder / "both").mkdir()
    for name in ("a.csv", "b.csv"):
        (folder / "both" / name).write_text("age,dose,ill\n1,2,0\n")
    return files


def experiment(silos: dict[str, Any], data: dict[str, Any] | None = None, **execution: Any) -> fr.Experiment:
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


def places(files: dict[str, Path], *, pinned: bool = False) -> dict[str, Any]:
    return {
        name: {"data": str(file), "resources": {f"site_{name}": 1} if pinned else {}} for name, file in files.items()
    }


def summary(report: fr.RoundReport) -> dict[str, Any]:
    figures = {name: value for name, value in report.metrics.items() if "seconds" not in name}
    return {"parameters": report.parameters.tobytes().hex(), "metrics": figures}


# ——— two nodes ———


def train_on_two_nodes(folder: Path) -> None:
    """Each node has a silo's resource, and nothing else tells where a file is. Prints what happened."""
    import ray
    from ray.cluster_utils import Cluster

    opened: list[str] = []
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
    head = {"num_cpus": 0, "node_ip_address": HEAD, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for name, address in zip(SIZES, (SITE_A, SITE_B), strict=True):
        cluster.add_node(num_cpus=1, resources={f"site_{name}": 1}, node_ip_address=address)
    ray.init(address=cluster.address, log_to_driver=False)
    files = {name: next((folder / name).iterdir()) for name in SIZES}
    chosen, session = experiment(places(files, pinned=True)), fr.RaySession()
    prepared = prepare(chosen, session=session)
    resolved = resolve(prepared, session)
    with place(prepared, resolved, session) as pool:
        hosts = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        found = [hosts[where.node_id] for where in pool.actor_infos()]
        *_, last = train_rounds(prepared, resolved, pool, build_initial_state(prepared))
    refusals = [
        refusal(experiment(places({"north": folder / "both", "south": folder / "gone.csv"}, pinned=True)), session),
        refusal(experiment({"north": {"data": "/x", "resources": {"site_west": 1}}, "south": {"data": "/x"}}), session),
    ]
    seen = list(opened)
    prepare(experiment(places(files), placement="serial"))
    ray.shutdown()
    cluster.shutdown()
    paths = [sorted({path for path in each if path.startswith(str(folder))}) for each in (seen, opened)]
    print(json.dumps({**summary(last), "hosts": found, "refusals": refusals, "opened": paths}))


def refusal(chosen: fr.Experiment, session: fr.RaySession) -> str:
    try:
        prepare(chosen, session=session)
    except fr.BadInput as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def on_two_nodes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Any]]:
    """The silos' files, and what came of training where they lie."""
    folder = tmp_path_factory.mktemp("silos")
    files = write_sites(folder)
    return files, on_a_cluster_of_its_own("test_sites", "train_on_two_nodes", folder)


@pytest.mark.ray
def test_each_site_trains_on_its_own_node_and_the_driver_opens_none_of_their_files(
    on_two_nodes: tuple[dict[str, Path], dict[str, Any]],
) -> None:
    files, found = on_two_nodes
    assert found["hosts"] == [SITE_A, SITE_B]
    over_there, here_too = found["opened"]
    assert over_there == []
    assert here_too == sorted(map(str, files.values()))  # a driver that reads them, serially, is noticed


@pytest.mark.ray
def test_sites_end_in_the_bytes_and_the_figures_of_the_same_files_read_serially(
    on_two_nodes: tuple[dict[str, Path], dict[str, Any]],
) -> None:
    files, found = on_two_nodes
    *_, serial = fr.iter_rounds(experiment(places(files), placement="serial"))
    assert found["parameters"] == summary(serial)["parameters"]
    assert found["metrics"] == summary(serial)["metrics"]
    assert {"test_auc", "validation_accuracy", "client_accuracy_mean"} <= found["metrics"].keys()


@pytest.mark.ray
def test_what_a_site_lacks_is_said_before_training(
    on_two_nodes: tuple[dict[str, Path], dict[str, Any]],
) -> None:
    files, found = on_two_nodes
    unreadable, nowhere = found["refusals"]
    folder = files["north"].parents[1]
    assert unreadable.splitlines() == [
        f"execution.silos.north.data: {folder / 'both'}: holds a.csv, b.csv; a client has one file",
        f"execution.silos.south.data: {folder / 'gone.csv'}: there is no such file",
    ]
    assert nowhere.splitlines() == [
        "execution.silos.north: no node has 1 site_west and 0.5 CPU",
        "the nodes have 1 CPU and 1 site_north; 1 CPU and 1 site_south; nothing; "
        "execution.autoscale=true waits for more",
    ]


@pytest.mark.ray
def test_a_site_that_is_away_for_too_long_does_not_count(tmp_path: Path, session: fr.RaySession) -> None:
    import ray

    chosen = experiment(places(write_sites(tmp_path)))
    longer = {"federation": chosen.federation.model_copy(update={"rounds": 10})}
    seldom = {"evaluation": chosen.evaluation.model_copy(update={"every": 10})}
    prepared = prepare(chosen.model_copy(update=longer | seldom), session=session)
    resolved = resolve(prepared, session)
    with place(prepared, resolved, session) as pool:
        assert len(pool.actor_infos()) == 2
        rounds = train_rounds(prepared, resolved, pool, build_initial_state(prepared), splits=())
        assert next(rounds).exclusions == {}
        pool._plan = replace(pool._plan, pins=(pool._plan.pins[0], replace(pool._plan.pins[1], resources={"gone": 1})))
        pool._settings = chosen.execution.model_copy(update={"capacity_timeout_seconds": 0.5})
        ray.kill(pool._slots[1].actor)
        for _ in range(2):
            assert next(rounds).exclusions == {
                1: Exclusion(ExclusionReason.FAILED, "silo south has had no actor for 0.5 s")
            }


@pytest.mark.ray
def test_a_run_on_sites_goes_on_serially_to_the_same_bytes(
    tmp_path: Path, session: fr.RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files, kept = write_sites(tmp_path), {"tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}

    def of(rounds: int, **execution: Any) -> fr.Experiment:
        section = experiment(places(files), **execution).model_dump(exclude_none=True)
        return fr.Experiment.model_validate(
            {**section, **kept, "federation": {**section["federation"], "rounds": rounds}}
        )

    whole = list(fr.iter_rounds(of(3, placement="serial")))
    begun = fr.run(of(2), session=session)
    assert (begun.placement, len(begun.places)) == ("dedicated", 2)
    result = fr.run(of(3, placement="serial"), resume_newest=True)
    assert (result.resumed_from_round, result.placement) == (2, "serial")
    assert result.parameters.tobytes() == whole[-1].parameters.tobytes()
    for end in (begun, result):  # what was learned at the silos for scaling is in the model: it takes their raw rows
        rows = [file.read() for file in files_of_silos(end.experiment.data, {n: str(f) for n, f in files.items()})]
        x, y = (np.concatenate([getattr(part, name) for part in rows]) for name in ("test_x", "test_y"))
        ill = end.model(torch.from_numpy(x)).detach().numpy()[:, 0] > 0
        assert (ill == y).mean() == end.metrics["test_accuracy"]


# ——— which nodes can take which silos ———

NEEDS = Footprint(model_bytes=0)  # 0.5 GB an actor


def node(**resources: float) -> dict[str, float]:
    return {"CPU": 2.0, "GPU": 0.0, "memory": 8e9, **resources}


def settings(silos: dict[str, dict[str, float]], **more: Any) -> ExecutionSettings:
    given = {name: {"data": "/d", "resources": resources} for name, resources in silos.items()}
    return ExecutionSettings.model_validate({"silos": given, **more})


def test_a_site_gets_its_resources_and_its_share_of_what_gpus_its_node_has() -> None:
    chosen = settings({"a": {"x": 1}, "b": {"y": 0.5}, "c": {"y": 0.5}})
    plan = plan_silos(chosen, ("a", "b", "c"), [node(x=1), node(y=1, GPU=1)], NEEDS)
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
            [node(x=1), node()],
            "silos.a: no node has 2 x and 1 CPU\nthe nodes have 2 CPU; 2 CPU and",
        ),
        ({"a": {"x": 1}}, {"cpus_per_actor": 4}, [node(x=1)], "silos.a: no node has 1 x and 4 CPU"),
        ({"a": {"x": 1}}, {"gpus_per_actor": 1}, [node(x=1)], "silos.a: no node has 1 x and 1 CPU and 1 GPU"),
        ({"a": {"x": 1}, "b": {"x": 1}}, {}, [node(x=1)], "silos.b: no room beside the other silos for its actor"),
        ({"a": {}, "b": {"x": 1}}, {}, [node(x=1, CPU=1)], "silos.b: no room beside the other silos"),
        ({"a": {}}, {}, [node(memory=4e8)], "silos.a: no room beside the other silos for its actor (0.5 GB)"),
    ],
)
def test_sites_that_no_node_can_take_are_refused_or_waited_for(
    silos: dict[str, dict[str, float]], more: dict[str, Any], nodes: list[dict[str, float]], problem: str
) -> None:
    with pytest.raises(CapacityError, match=re.escape(problem)):
        plan_silos(settings(silos, **more), tuple(silos), nodes, NEEDS)
    growing = plan_silos(settings(silos, autoscale=True, **more), tuple(silos), nodes, NEEDS)
    assert (growing.count, growing.growing) == (len(silos), True)


def test_a_site_with_no_choice_is_put_before_one_that_can_go_anywhere() -> None:
    plan_silos(settings({"a": {}, "b": {"x": 1}}), ("a", "b"), [node(x=1, CPU=1), node(CPU=1)], NEEDS)


# ——— what may be asked for ———


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"execution": {"placement": "pooled"}}, "execution.placement: 'pooled': moves examples between nodes"),
        ({"execution": {"vectorize": 2}}, "execution.vectorize: 2: a silo trains its one client"),
        ({"execution": {"strategy": "pack"}}, "execution.strategy: 'pack': execution.silos says which actor is where"),
        ({"data": {"directory": "/d"}}, "data.directory: '/d': execution.silos says where the files are; give one"),
        ({"data": {"source": "digits"}}, "execution.silos: 'a': each reads its own file, as data.source: folder"),
        ({"silos": None}, "data.directory: None: folder needs the directory of its files, or execution.silos"),
        ({"silos": {"a b": {"data": "/d"}}}, "the name of a silo is of letters, digits, - and _"),
        ({"silos": {"a": {"data": "d"}}}, "give an absolute path; it is read on the silo's node"),
        ({"silos": {"a": {"data": "/d", "resource": {}}}}, "unknown key; did you mean resources?"),
        ({"silos": {"a": {"data": "/d", "resources": {"GPU": 1}}}}, "see cpus_per_actor, gpus_per_actor"),
        ({"silos": {"a": {"data": "/d", "resources": {"x": 0}}}}, "execution.silos.a.resources.x: 0 should be"),
    ],
)
def test_contradictions_are_refused_with_what_would_be_right(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
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


# ——— files of silos, read here ———


def test_of_a_site_the_driver_knows_figures_and_no_example(tmp_path: Path) -> None:
    files = write_sites(tmp_path)
    known = prepare(experiment(places(files), placement="serial")).federation
    assert isinstance(known, FederationOfFiles)
    assert known.client_names == ("north", "south")
    for examples in (known.shards.examples, *known.splits().values()):
        assert not examples.x.any()
        assert not examples.y.any()
    shards, splits = known.loaded()
    assert shards.sizes.tolist() == known.shards.sizes.tolist()
    counts = [np.bincount(shards.only(i).examples.y, minlength=2).tolist() for i in (0, 1)]
    assert known.label_counts().tolist() == counts
    assert {name: len(split) for name, split in splits.items()} == {"test": 8 + 6, "validation": 11}


def test_sites_and_a_folder_of_the_same_files_train_to_the_same_bytes(tmp_path: Path) -> None:
    files = write_sites(tmp_path)
    (tmp_path / "folder").mkdir()
    for name, file in files.items():
        (tmp_path / "folder" / f"{name}{file.suffix}").write_bytes(file.read_bytes())
    by_site = experiment(places(files), placement="serial")
    data = {**by_site.model_dump(exclude_none=True)["data"], "directory": str(tmp_path / "folder")}
    execution = {"placement": "serial", "vectorize": 1}
    together = fr.Experiment.model_validate(
        {**by_site.model_dump(exclude_none=True), "data": data, "execution": execution}
    )
    assert prepare(by_site).federation.digest() == prepare(together).federation.digest()
    *_, one = fr.iter_rounds(by_site)
    *_, other = fr.iter_rounds(together)
    assert one.parameters.tobytes() == other.parameters.tobytes()
    for figure in ("test_accuracy", "test_loss", "validation_loss", "client_accuracy_mean"):
        assert one.metrics[figure] == pytest.approx(other.metrics[figure], rel=1e-12)


def test_without_columns_named_those_of_the_first_site_hold_for_all(tmp_path: Path) -> None:
    for name, header in (("a", "u,v,y"), ("b", "w,v,y,u")):
        rows = "\n".join(",".join(str(i % 2) for _ in header.split(",")) for i in range(10))
        (tmp_path / f"{name}.csv").write_text(f"{header}\n{rows}\n")
    silos = {name: {"data": str(tmp_path / f"{name}.csv")} for name in ("b", "a")}
    data = {"features": None, "label": "y", "standardize": False}
    known = prepare(experiment(silos, data, placement="serial")).federation
    assert known.shards.examples.x.shape[1:] == (2,)


def test_what_changed_after_the_survey_is_refused(tmp_path: Path) -> None:
    files = write_sites(tmp_path)
    known = prepare(experiment(places(files), placement="serial")).federation
    files["south"].write_bytes(files["north"].read_bytes())
    with pytest.raises(DataError, match=r"south/rows\.npz: its rows are not those that the run began with"):
        known.loaded()


def test_every_site_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    silos = {name: {"data": str(tmp_path / f"{name}.csv")} for name in ("a", "b")}
    with pytest.raises(DataError) as caught:
        prepare(experiment(silos, placement="serial"))
    assert str(caught.value).splitlines() == [
        f"execution.silos.{name}.data: {tmp_path / name}.csv: there is no such file" for name in ("a", "b")
    ]
