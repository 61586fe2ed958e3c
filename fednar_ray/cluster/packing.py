"""Collects the files that are sent with a job: those of a directory, without results, stores, data and environments."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

from fednar_ray.core.errors import BadInput

LIMIT_BYTES = 100_000_000  # the package passes through the memory of the cluster's head
EXCLUDED_DIRECTORIES = (
    "runs", "searches", "mlruns", "mlartifacts", "venv", "env", "site-packages", "node_modules", "__pycache__",
    "*.egg-info",
)  # fmt: skip
DATA_DIRECTORIES = ("data", "datasets")  # unless they are Python packages
EXCLUDED_FILES = (
    "*.db", "*.sqlite", "*.sqlite3", "*.db-wal", "*.db-shm", "*.log", "*.pyc",
    "*.npz", "*.npy", "*.parquet", "*.arrow", "*.h5", "*.hdf5", "*.pkl", "*.pickle",
    "*.pt", "*.pth", "*.ckpt", "*.safetensors", "*.zip", "*.tar", "*.gz", "*.tgz", "*.bz2", "*.xz", "*.zst",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """Files of one directory.

    Attributes:
        root: The directory.
        files: Their paths relative to ``root``.
        size_bytes: Their size in total.
    """

    root: Path
    files: tuple[Path, ...]
    size_bytes: int

    def __str__(self) -> str:
        return f"{len(self.files)} files ({self.size_bytes / 1e6:.1f} MB) of {self.root}"

    def copy_to(self, directory: Path) -> None:
        """Copies the files to the same relative paths below another directory."""
        for file in self.files:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / file, directory / file)


def collect_package(root: Path, *, needed: Sequence[Path], exclude: Sequence[str] = ()) -> Package:
    """Collects the files below a directory that are sent with a job.

    Hidden files, results, stores, data sets and environments are left out, and links to directories are not followed.

    Args:
        root: The directory.
        needed: Files that are included in any case, relative to ``root``.
        exclude: Patterns of names, or of paths relative to ``root``, that are left out as well.

    Raises:
        BadInput: The files are larger than ``LIMIT_BYTES``.
    """
    sizes: dict[Path, int] = {}
    total = 0
    for file in chain(needed, _walk(root, exclude)):
        if file not in sizes:
            sizes[file] = (root / file).stat().st_size
            total += sizes[file]
        if total > LIMIT_BYTES:
            raise BadInput(_describe_excess(root, sizes))
    return Package(root=root, files=tuple(sorted(sizes)), size_bytes=total)


def _walk(root: Path, exclude: Sequence[str]) -> Iterator[Path]:
    for here, directories, files in os.walk(root):
        place = Path(here).relative_to(root)
        directories[:] = [name for name in sorted(directories) if not _is_excluded(root, place / name, exclude)]
        for name in files:
            if not _matches(place / name, (".*", *EXCLUDED_FILES, *exclude)) and (root / place / name).is_file():
                yield place / name


def _is_excluded(root: Path, directory: Path, exclude: Sequence[str]) -> bool:
    whole = root / directory
    if _matches(directory, (".*", *EXCLUDED_DIRECTORIES, *exclude)) or (whole / "pyvenv.cfg").exists():
        return True
    return directory.name in DATA_DIRECTORIES and not (whole / "__init__.py").exists()


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) or fnmatch(str(path), pattern) for pattern in patterns)


def _describe_excess(root: Path, sizes: dict[Path, int]) -> str:
    tops: dict[str, int] = {}
    for file, size in sizes.items():
        tops[file.parts[0]] = tops.get(file.parts[0], 0) + size
    largest = ", ".join(f"{name} ({tops[name] / 1e6:.0f} MB)" for name in sorted(tops, key=lambda n: -tops[n])[:3])
    return (
        f"{root} holds more than {LIMIT_BYTES / 1e6:.0f} MB that would be sent with the job, such as {largest}: "
        "leave files out with --exclude NAME, or submit from a directory that holds only the experiment and its code; "
        "data belongs on the cluster"
    )
