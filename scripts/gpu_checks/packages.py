"""Provides the packages that training needs besides torch, on a machine that may have nothing else."""

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

WHEELS = Path(__file__).resolve().parents[2] / ".bench" / "wheels"
REQUIRED = {name: name for name in ("numpy", "pydantic", "psutil", "safetensors")} | {"yaml": "pyyaml"}
"""What the placement ``serial`` imports: the name of the module → that of its distribution."""
OF_PYDANTIC = ("pydantic-core", "typing-extensions", "typing-inspection", "annotated-types")
VERSIONS, PLATFORMS = ("3.11", "3.12"), ("manylinux2014_x86_64", "manylinux_2_28_x86_64")
INSTALL_SECONDS = 90


def find_missing() -> list[str]:
    """Returns the distributions that are required and not installed."""
    return [name for module, name in REQUIRED.items() if find_spec(module) is None]


def provide(site: Path) -> list[str]:
    """Provides what is missing in ``site``, which becomes the first place where modules are looked for.

    Wheels that were packed are unpacked; what is then still missing is installed with pip, if there is a network.

    Returns:
        The distributions that are still missing.
    """
    missing = find_missing()
    if not missing:
        return []
    site.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(site))
    wanted = {*missing, *(OF_PYDANTIC if "pydantic" in missing else ())}
    for wheel in WHEELS.glob("*.whl") if WHEELS.is_dir() else ():
        if get_distribution(wheel.name) in wanted and fits(wheel.name):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
    invalidate_caches()
    if missing := find_missing():
        _install(missing, site)
    invalidate_caches()
    return find_missing()


def get_distribution(wheel: str) -> str:
    """Returns the distribution of a wheel's file name, as ``REQUIRED`` writes it."""
    return wheel.partition("-")[0].replace("_", "-").lower()


def fits(name: str) -> bool:
    """Returns whether a wheel of that name is for this interpreter, or for any."""
    tag = name.removesuffix(".whl").split("-")[-3]
    return tag in ("py3", "py2.py3", f"cp{sys.version_info.major}{sys.version_info.minor}") or "-abi3-" in name


def _install(names: Sequence[str], site: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(site)]
    try:
        subprocess.run([*command, "--retries", "0", *names], timeout=INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"pip: {error}", flush=True)


def pack() -> None:
    """Downloads the wheels of what is required, for each of ``VERSIONS``."""
    for version in VERSIONS:
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(WHEELS)]
        subprocess.run([*command, "--python-version", version, *platforms, *REQUIRED.values()], check=True)
    size = sum(wheel.stat().st_size for wheel in WHEELS.iterdir()) / 1e6
    print(f"{size:.0f} MB in {WHEELS}")
