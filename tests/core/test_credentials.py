"""An address with a password is refused: the password is not written, printed, sent or repeated in the error."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

import fednar_ray as fr
from fednar_ray.checkpoint.locations import open_storage
from fednar_ray.config.loading import parse_document
from fednar_ray.config.recording import TrackingSettings
from fednar_ray.core.credentials import find_secret
from fednar_ray.tracking.store import Store
from tests.support.processes import finish, start_fednar

SECRET = "hunter2hunter2"  # noqa: S105 - not a real password
BIN = Path(sys.executable).parent
WITH_SECRET = (
    "postgresql://me:{}@db/mlflow",
    "postgresql+psycopg2://me:{}%40x@db/mlflow",
    "postgresql://me:1/{}@db/mlflow",  # SQLAlchemy accepts a slash in a password
    "postgresql://db/mlflow?user=me&password={}",
    "postgresql://db/mlflow?pass%77ord={}",
    "postgresql://db/mlflow?sslmode=require&sslpassword={}",
    "postgresql:/me:{}@db/mlflow",
    "mysql+pymysql://me:{}@db/mlflow",
    "http://me:{}@mlflow:5000",
    "HTTPS://me:a@{}@mlflow:5000",
    "http://:{}@mlflow:5000",
    "http://mlflow:5000?token={}",
    "http://mlflow:5000/#access_token={}",
    "https://account.blob.core.windows.net/c?sv=1&sig={}",
    "s3://key:{}@bucket/checkpoints",
    "s3://bucket/checkpoints?secret_key={}",
    "https://bucket/x?X-Amz-Signature={}",
    "ray://me:{}@head:10001",
    "http://me@example.org:{}@mlflow:5000",  # the user is an e-mail address
    "http://me%3A{}@mlflow:5000",  # the library requests decodes it
    "mssql+pyodbc:///?odbc_connect=Driver%3DX%3BUID%3Dme%3BPWD%3D{}",
    "https://account.blob.core.windows.net/c?sas={}",
)
WITHOUT_SECRET = (
    "http://mlflow:5000",
    "http://me@mlflow:5000",
    "http://mlflow:5000/team@work/x",
    "http://me@mlflow:5000/team@work",
    "postgresql://me@db:5432/team@work",
    "http://mlflow/a%3Ab@c",
    "http://[::1]:5000/a@b",
    "postgresql://me@db/mlflow?passfile=/home/you/.pgpass&sslkey=/home/you/key&sslmode=require",
    "mysql+pymysql://db/mlflow?read_default_file=/home/you/.my.cnf",
    "sqlite:////data/a:b@c.db",
    "sqlite:///a:b@c.db",
    "file:///a:b@c",
    "databricks://scope:prefix",
    "s3://bucket/x?region=eu-west-1&endpoint_override=minio:9000",
    "abfs://container@account.dfs.core.windows.net/x",
    "10.0.0.1:6379",
    "/data/a:b@c",
)


@pytest.mark.parametrize("address", WITH_SECRET)
def test_a_secret_in_an_address_is_found(address: str) -> None:
    assert find_secret(address.format(SECRET))
    assert find_secret(f"see {address.format(SECRET)} for more")
    assert SECRET not in str(find_secret(address.format(SECRET)))


@pytest.mark.parametrize("address", WITHOUT_SECRET)
def test_names_ports_and_file_paths_are_not_secrets(address: str) -> None:
    assert find_secret(address) is None


@pytest.mark.parametrize("piece", ["x", ":/", "a://b:c", "a://b:c?d=", "a:/:", "://:", "&a", "a://?token", "@:/"])
def test_a_long_text_is_searched_quickly(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    assert find_secret(text) is None
    assert find_secret(f"{text} http://me:{SECRET}@mlflow")


PLACES: dict[str, Callable[[str], object]] = {
    "a file": lambda uri: parse_document(f"experiment: {{tracking: {{uri: '{uri}'}}}}", "f.yaml"),
    "a file with other faults": lambda uri: parse_document(
        f"experiment: {{tracking: {{uri: ['{uri}'], x: '{uri}'}}, checkpoint: '{uri}'}}\n'{uri}': 1", "f.yaml"
    ),
    "a search": lambda uri: parse_document(
        f"experiment: {{}}\nsearch: {{space: {{tracking.uri: {{choice: ['{uri}']}}}}}}", "f.yaml"
    ),
    "an override": lambda uri: parse_document("experiment: {}", "f.yaml", [f"tracking.uri={uri}"]),
    "an override without a key": lambda uri: parse_document("experiment: {}", "f.yaml", [uri]),
    "an override that is not YAML": lambda uri: parse_document("experiment: {}", "f.yaml", [f"tracking.uri=[{uri}"]),
    "storage": lambda uri: parse_document("experiment: {}", "f.yaml", [f"checkpoint.storage={uri}"]),
    "an argument": lambda uri: fr.Experiment.model_validate(
        {"model": {"function": "a.b", "arguments": {"address": uri}}}
    ),
    "settings": lambda uri: fr.Experiment.model_validate({"tracking": {"uri": uri, "uro": uri}}),
    "settings that were made": lambda uri: fr.Experiment(tracking=TrackingSettings(uri=uri)),
    "a store": Store,
    "a place of checkpoints": open_storage,
    "a cluster": fr.RaySession,
}


@pytest.mark.parametrize("address", WITH_SECRET)
@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_refused_in_every_place_and_never_repeated(place: str, address: str) -> None:
    with pytest.raises((fr.BadInput, ValidationError)) as refused:
        PLACES[place](address.format(SECRET))
    message = "".join(traceback.format_exception_only(refused.value))
    assert SECRET not in message
    assert "PGPASSWORD" in message


def test_a_cluster_address_without_a_scheme_is_refused_too() -> None:
    with pytest.raises(fr.BadInput, match="--address: the address contains a password"):
        fr.RaySession(f"me:{SECRET}@head:6379")


def test_an_address_without_a_secret_is_kept_unchanged() -> None:
    for address in WITHOUT_SECRET[1:6]:
        found = parse_document("experiment: {}", "f.yaml", [f"tracking.uri={address}"]).experiment.tracking.uri
        assert found == address


URI = f"postgresql://me:{SECRET}@127.0.0.1:1/x"
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "run, override": (["run", f"tracking.uri={URI}"], {}),
    "run, override with a query": (["run", f"tracking.uri={URI}?sslmode=require", "--json"], {}),
    "run, as a file": (["run", f"{URI}?a=b"], {}),
    "run, variable": (["run", "execution.placement=serial"], {"MLFLOW_TRACKING_URI": URI}),
    "run, file": (["run", "f.yaml", "--json"], {}),
    "run, address": (["run", f"--address=ray://me:{SECRET}@head:1"], {}),
    "tune, variable": (["tune"], {"MLFLOW_TRACKING_URI": URI}),
    "compare, variable": (["compare"], {"MLFLOW_TRACKING_URI": URI}),
    "ui": (["ui", "--uri", URI], {}),
    "ui, variable": (["ui"], {"MLFLOW_TRACKING_URI": URI}),
    "sync": (["sync", "--uri", URI], {}),
    "report": (["report", "a", f"--uri={URI}"], {}),
    "doctor, unknown option": (["doctor", f"--uro={URI}"], {}),
    "submit": (["submit", f"tracking.uri={URI}"], {}),
    "submit, variable": (["submit"], {"MLFLOW_TRACKING_URI": URI}),
    "jobs": (["jobs", "--address", f"http://me:{SECRET}@head:8265"], {}),
    "resume": (["run", "--resume", f"s3://key:{SECRET}@bucket/run-1"], {}),
    "data": (["data", "inspect", f"checkpoint.storage=s3://key:{SECRET}@bucket"], {}),
}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("case", COMMANDS)
def test_a_refused_command_writes_the_secret_nowhere(case: str, tmp_path: Path) -> None:
    words, variables = COMMANDS[case]
    (tmp_path / "f.yaml").write_text(f"experiment: {{tracking: {{uri: '{URI}'}}}}")
    environment = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    done = finish(start_fednar(*words, cwd=tmp_path, env={**environment, **variables}))
    assert done.returncode == 2, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "PGPASSWORD" in done.stderr
    (tmp_path / "f.yaml").unlink()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not left


def test_a_run_that_was_recorded_with_a_password_is_not_sent(tmp_path: Path) -> None:
    from fednar_ray.tracking.sync import sync

    (tmp_path / "run.json").write_text(f'{{"run_id": "{"a" * 32}", "tracking_uri": "{URI}"}}')
    report = sync(tmp_path)
    assert report.problem is not None
    assert report.problem.startswith(f"{tmp_path / 'run.json'}: the address contains a password")
    assert SECRET not in report.problem
