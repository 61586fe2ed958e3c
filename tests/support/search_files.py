"""The file of a small search for tests, and digests of the files that a search leaves."""

import hashlib
from pathlib import Path

import yaml

from fednar_ray.config import Document
from fednar_ray.config.loading import parse_document
from fednar_ray.tracking.store import Store


def dump_small_search(store: Store, trials: int) -> str:
    experiment = {
        "name": "small",
        "data": {"source": "digits", "validation": 0.1, "partition": {"kind": "iid", "clients": 4}},
        "model": {"name": "mlp", "hidden": 4},
        "federation": {"rounds": 3, "local_steps": 1},
        "execution": {"placement": "serial"},
        "tracking": {"uri": store.uri},
    }
    search = {"space": {"algorithm.local_lr": {"uniform": [0.01, 0.2]}}, "trials": trials}
    return yaml.safe_dump({"experiment": experiment, "search": search})


def build_small_search(store: Store, trials: int = 3) -> Document:
    return parse_document(dump_small_search(store, trials), "f.yaml", to_search=True)


def hash_files(folder: Path) -> dict[str, str]:
    """Returns the path of every file below a folder with a digest of its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
