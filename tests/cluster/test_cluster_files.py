"""Checks of the files in docs/cluster that need no cluster: schemas, commands, and consistent names."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.config import load_document

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docs" / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PORTS_OF_RAY = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}


def load_documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FILES / name).read_text()))


(RAY_JOB,) = load_documents("rayjob.yaml")
CLUSTER = RAY_JOB["spec"]["rayClusterSpec"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]
(SEARCH_JOB,) = load_documents("rayjob-tune.yaml")
RAY_JOBS = {"run": RAY_JOB, "tune": SEARCH_JOB}
MLFLOW = load_documents("mlflow.yaml")
(VOLUME,) = load_documents("shared-volume.yaml")
OBJECTS = [*MLFLOW, VOLUME]
IMAGE = f"fednar-ray:{PROJECT['version']}"


def select_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in MLFLOW if each["kind"] == kind}


def list_ray_pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the pods of a RayJob by their roles."""
    cluster = job["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {
        "submitter": job["spec"]["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        **workers,
    }


SECRETS, SERVICES, SETS = select_kind("Secret"), select_kind("Service"), select_kind("StatefulSet")
PODS = {
    **list_ray_pods(RAY_JOB),
    **{f"search-{role}": pod for role, pod in list_ray_pods(SEARCH_JOB).items()},
    **{name: each["spec"]["template"] for name, each in (SETS | select_kind("Job")).items()},
}


def list_containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in PODS.items():
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            yield name, container


def parse_options(command: click.Command, given: list[str]) -> click.Context:
    """Parses options with a command, without running it."""
    return command.make_context(command.name, list(given))


def import_ray_start() -> click.Command:
    from ray.scripts.scripts import start

    return start


# ——— the launcher ———


def test_ray_accepts_the_launcher_file(tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    launcher = yaml.safe_load((FILES / "launcher.yaml").read_text())
    prepared = prepare_config(launcher)
    validate_config(prepared)
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[commands] == []  # and no default of the provider remains


def test_the_launcher_has_a_head_without_actors_and_starts_without_workers() -> None:
    launcher = yaml.safe_load((FILES / "launcher.yaml").read_text())
    head = launcher["available_node_types"][launcher["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    (gpu,) = (kind for name, kind in launcher["available_node_types"].items() if name != launcher["head_node_type"])
    assert gpu["resources"]["GPU"] >= 1
    assert 0 == gpu["min_workers"] < gpu["max_workers"] <= launcher["max_workers"]
    assert launcher["docker"]["image"] == IMAGE


@pytest.mark.parametrize("where", ["head", "worker"])
def test_the_launcher_commands_start_ray(where: str) -> None:
    launcher = yaml.safe_load((FILES / "launcher.yaml").read_text())
    stop, start = launcher[f"{where}_start_ray_commands"]
    assert stop == "ray stop"
    before, _, options = start.partition("ray start ")
    assert before.strip() == "ulimit -n 65536;"
    given = parse_options(import_ray_start(), shlex.split(options)).params
    if where == "head":
        assert (given["head"], given["num_cpus"], given["dashboard_host"]) == (True, 0, "127.0.0.1")
        assert given["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
        assert given["port"] == PORTS_OF_RAY["gcs"]
    else:
        assert given["address"] == f"$RAY_HEAD_IP:{PORTS_OF_RAY['gcs']}"


def test_the_experiment_settings_in_the_launcher_file_are_valid() -> None:
    (words,) = re.findall(r"`execution: (\{.*\})`", (FILES / "launcher.yaml").read_text())
    fr.Experiment.model_validate({"execution": yaml.safe_load(words)})


# ——— Kubernetes ———


@pytest.mark.parametrize("index", range(len(OBJECTS)))
def test_kubernetes_accepts_the_objects(index: int) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(OBJECTS[index], kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", list(PODS))
def test_kubernetes_accepts_the_pods(name: str) -> None:
    import kubernetes_validate

    template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": PODS[name]}
    kubernetes_validate.validate(template, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", list(PODS))
def test_every_pod_fits_the_restricted_pod_security_standard(name: str) -> None:
    """No root, no privileges, no capabilities, and the profile of system calls that comes with the runtime."""
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["runAsGroup"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
    assert {next(iter(volume.keys() - {"name"})) for volume in spec.get("volumes", ())} <= {
        "configMap", "emptyDir", "persistentVolumeClaim", "secret",
    }  # fmt: skip


@pytest.mark.parametrize("name", [*SETS, *select_kind("Job")])
def test_what_a_read_only_pod_writes_is_on_a_volume(name: str) -> None:
    for container in PODS[name]["spec"]["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}  # noqa: S108 - within the pod


@pytest.mark.parametrize("command", list(RAY_JOBS))
def test_the_ray_job_has_only_fields_that_kuberay_reads(command: str) -> None:
    job = RAY_JOBS[command]
    cluster = job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"], job["metadata"].keys()) == ("ray.io/v1", "RayJob", {"generateName"})
    assert job["spec"].keys() == {
        "entrypoint", "submissionMode", "submitterPodTemplate", "backoffLimit", "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished", "rayClusterSpec",
    }  # fmt: skip
    autoscaling = {"enableInTreeAutoscaling", "autoscalerOptions"} if command == "run" else set()
    assert cluster.keys() == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs", *autoscaling}
    assert cluster["headGroupSpec"].keys() == {"rayStartParams", "template"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers.keys() == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert (workers["minReplicas"] == workers["maxReplicas"]) == (not autoscaling)
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == __import__("ray").__version__


def test_the_nodes_of_the_ray_job_start_with_options_of_ray() -> None:
    for group in (CLUSTER["headGroupSpec"], WORKERS):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # KubeRay wants text
        options = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
        parse_options(import_ray_start(), ["--head", *options])
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    head, workers = (pod["spec"]["containers"][0]["resources"] for pod in (PODS["head"], PODS["gpu"]))
    assert "nvidia.com/gpu" not in head["limits"]
    assert workers["requests"] == workers["limits"]
    ports = {port["name"]: port["containerPort"] for port in PODS["head"]["spec"]["containers"][0]["ports"]}
    assert ports == PORTS_OF_RAY


def test_the_entrypoint_of_the_ray_job_is_a_command_with_valid_settings(tmp_path: Path) -> None:
    program, name, file, *rest = shlex.split(RAY_JOB["spec"]["entrypoint"])
    assert PROJECT["scripts"][program] == "fednar_ray.cli.main:main"
    parse_options(cli.commands[name], [file, *rest])
    overrides = [word for word in rest if not word.startswith("-")]
    mine = tmp_path / "experiment.yaml"
    shutil.copy(ROOT / "tune_configs" / "digits.yaml", mine)
    execution = load_document(mine, overrides).experiment.execution
    assert (execution.autoscale, execution.gpus_per_actor) == (True, 1)
    assert execution.actors == WORKERS["maxReplicas"]
    (mount,) = PODS["head"]["spec"]["containers"][0]["volumeMounts"]
    (volume,) = PODS["head"]["spec"]["volumes"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], str(Path(file).parent))
    command = re.search(r"create configmap (\S+) --from-file=(\S+)=", (FILES / "rayjob.yaml").read_text())
    assert command is not None
    assert command.groups() == (volume["configMap"]["name"], Path(file).name)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("restarts", "started"), [(False, "search.name=mine"), (True, "--resume mine")])
def test_the_entrypoint_of_the_search_starts_it_or_resumes_it(restarts: bool, started: str, tmp_path: Path) -> None:
    program = tmp_path / "fednar"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    if restarts:
        (tmp_path / "searches" / "mine").mkdir(parents=True)
    entrypoint = SEARCH_JOB["spec"]["entrypoint"].replace("/shared", str(tmp_path))
    done = subprocess.run(
        ["sh", "-c", entrypoint], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    name, *words = done.stdout.split()
    assert done.stdout.endswith(f"{started}\n")
    parse_options(cli.commands[name], words)


def test_all_nodes_of_the_search_see_its_directory() -> None:
    assert VOLUME["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in ("search-head", "search-cpu"):
        (container,) = PODS[pod]["spec"]["containers"]
        (name,) = {mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/shared"}
        (volume,) = [each for each in PODS[pod]["spec"]["volumes"] if each["name"] == name]
        assert volume["persistentVolumeClaim"]["claimName"] == VOLUME["metadata"]["name"]


def test_every_image_is_that_of_the_project_or_of_a_back_end_and_has_a_tag() -> None:
    images = {container["image"] for _, container in list_containers()}
    assert {image.partition(":")[0] for image in images} == {"fednar-ray", "postgres", "minio/minio"}
    assert {image for image in images if image.startswith("fednar-ray")} == {IMAGE}
    assert all(re.search(r":.*\d+[.-]\d+", image) for image in images), images  # more than a major version
    assert f"-t {IMAGE} " in (FILES / "Dockerfile").read_text()


def test_every_named_secret_exists_with_its_key() -> None:
    named = [
        variable["valueFrom"]["secretKeyRef"]
        for _, container in list_containers()
        for variable in container.get("env", ())
        if "valueFrom" in variable
    ]
    assert len(named) > 10
    for reference in named:
        assert reference["key"] in SECRETS[reference["name"]]["stringData"], reference
    for pod in PODS.values():
        for volume in pod["spec"].get("volumes", ()):
            if "secret" in volume:
                keys = {item["key"] for item in volume["secret"]["items"]}
                assert keys <= SECRETS[volume["secret"]["secretName"]]["stringData"].keys()


def test_no_secret_has_a_usable_password() -> None:
    for secret in SECRETS.values():
        assert secret["stringData"]["password"] == "REPLACE-ME"  # noqa: S105


@pytest.mark.parametrize("name", list(SERVICES))
def test_every_service_targets_a_port_of_its_pods(name: str) -> None:
    service, pod = SERVICES[name]["spec"], PODS[name]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert SETS[name]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    (port,) = service["ports"]
    assert ports[port["targetPort"]] == port["port"]


def test_every_address_belongs_to_a_service() -> None:
    for text in (RAY_JOB["spec"]["entrypoint"], *map(yaml.safe_dump, PODS.values())):
        for host, port in re.findall(r"(?://|@|endpoint_override=|allowed-hosts=)([a-z]+):(\d+)", text):
            assert int(port) == SERVICES[host]["spec"]["ports"][0]["port"], (host, port)


def test_every_mounted_volume_exists() -> None:
    for name, container in list_containers():
        known = {volume["name"] for volume in PODS[name]["spec"].get("volumes", ())}
        known |= {
            claim["metadata"]["name"] for claim in SETS.get(name, {}).get("spec", {}).get("volumeClaimTemplates", ())
        }
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= known


@pytest.mark.filterwarnings("ignore")  # MLflow warns when it is imported
def test_variables_are_read_by_mlflow_boto_or_arrow() -> None:
    import mlflow.environment_variables
    import mlflow.server.auth

    texts = [Path(module.__file__).read_text() for module in (mlflow.environment_variables, mlflow.server.auth)]
    others = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HOME", "PGPASSWORD"}
    for name, container in list_containers():
        if container["image"] == IMAGE and "env" in container:
            written = {variable["name"] for variable in container["env"]} - others
            written = {variable for variable in written if f'"{variable}"' not in "".join(container.get("args", ()))}
            written = {variable for variable in written if not variable.startswith("POSTGRES_")}
            assert all(any(variable in text for text in texts) for variable in written), (name, written)


@pytest.mark.filterwarnings("ignore")
def test_the_mlflow_server_accepts_its_arguments() -> None:
    from mlflow.cli import server

    (container,) = PODS["mlflow"]["spec"]["containers"]
    assert container["command"] == ["mlflow", "server"]
    given = parse_options(server, container["args"]).params
    assert given["port"] == SERVICES["mlflow"]["spec"]["ports"][0]["port"]
    variables = {variable["name"] for variable in container["env"]}
    used = set(re.findall(r"\$\((\w+)\)", " ".join(container["args"])))
    assert used <= variables
    buckets = {Path(path).name for path in PODS["minio"]["spec"]["initContainers"][0]["command"][2:]}
    assert given["artifacts_destination"].removeprefix("s3://") in buckets
    assert re.search(r"s3://(\w+)/", RAY_JOB["spec"]["entrypoint"])[1] in buckets  # type: ignore[index]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_the_users_file_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server.auth.config import read_auth_config

    (tmp_path / "users.ini").write_text(SECRETS["mlflow"]["stringData"]["users.ini"])
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "users.ini"))
    found = read_auth_config()
    assert (found.default_permission, found.admin_username) == ("READ", SECRETS["mlflow"]["stringData"]["username"])


# ——— the image ———


def parse_dockerfile() -> list[tuple[str, str]]:
    """Returns each instruction with its arguments; continued lines are joined."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (FILES / "Dockerfile").read_text()).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def find_instructions(name: str) -> list[str]:
    return [words for instruction, words in parse_dockerfile() if instruction == name]


def test_the_image_is_built_from_known_instructions_and_arguments() -> None:
    assert {name for name, _ in parse_dockerfile()} == {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}
    declared = {words.partition("=")[0] for words in find_instructions("ARG")}
    used = set(re.findall(r"\$\{(\w+)", (FILES / "Dockerfile").read_text()))
    assert used == declared == {"PYTHON", "DEVICE", "TORCH_INDEX", "EXTRAS"}
    (python,) = (words.partition("=")[2] for words in find_instructions("ARG") if words.startswith("PYTHON="))
    least = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, python.split("."))) >= least
    assert python.count(".") == 2


def test_the_user_of_the_image_is_the_number_that_kubernetes_is_told() -> None:
    (user,) = find_instructions("USER")
    assert f"--uid {user.partition(':')[0]} " in " ".join(find_instructions("RUN"))
    for container_of, container in list_containers():
        if container["image"] == IMAGE:
            context = PODS[container_of]["spec"]["securityContext"]
            assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_the_image_installs_existing_extras_with_the_packages_its_files_need() -> None:
    (extras,) = (
        words.partition("=")[2].split(",") for words in find_instructions("ARG") if words.startswith("EXTRAS=")
    )
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    needs = " ".join(need for extra in extras for need in PROJECT["optional-dependencies"][extra])
    for package in ("ray[default]", "mlflow[auth]", "psycopg2-binary", "boto3"):
        assert package in needs


def test_the_image_copies_files_that_exist_and_are_not_ignored() -> None:
    let_through = [
        line[1:] for line in (FILES / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    for words in find_instructions("COPY"):
        *sources, _ = words.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, pattern) for pattern in let_through), source
    copied = {source for words in find_instructions("COPY") for source in words.split()[:-1]}
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "fednar_ray"} == copied


def test_the_command_of_the_image_exists() -> None:
    (command,) = (yaml.safe_load(words) for words in find_instructions("CMD"))
    assert command[0] in PROJECT["scripts"]
    parse_options(cli.commands[command[1]], command[2:])


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("device", "index", "code"), [("cuda", "", 0), ("cpu", "URL", 0), ("cpu", "", 1), ("tpu", "", 2)]
)
def test_the_build_of_torch_in_the_image_depends_on_the_device(
    device: str, index: str, code: int, tmp_path: Path
) -> None:
    (choice,) = (words for words in find_instructions("RUN") if words.startswith("case"))
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DEVICE": device, "TORCH_INDEX": index}
    done = subprocess.run(["sh", "-c", choice], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == (code != 0), done.stderr
    assert ("--index-url URL" in done.stdout) == (device == "cpu" and not code)


@pytest.mark.parametrize("path", sorted(FILES.iterdir()), ids=lambda path: path.name)
def test_no_file_names_the_host_of_a_registry(path: Path) -> None:
    assert not re.search(r"docker\.io|ghcr\.io|quay\.io|gcr\.io|pypi\.org|pytorch\.org|ecr\.", path.read_text())
