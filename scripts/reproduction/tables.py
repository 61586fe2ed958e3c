"""The tables: their experiments, and the values that the authors' own runs reached."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fednar_ray.config import Document, Experiment, load_document

PAPER = Path(__file__).resolve().parents[2] / "tune_configs" / "paper"
REGULARIZERS = ("decoupled", "fednar")
PRESETS = ("fedavg", "fedprox", "scaffold", "fedexp", "fedavgm", "fedadam")
ALPHAS = ("0.3", "1", "10")


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table."""

    row: str
    column: str
    regularizer: str
    experiment: Experiment
    published: float | None = None  # mean test accuracy (%) of the last 10 rounds of the authors' run


@dataclass(frozen=True, slots=True)
class Table:
    """A table at one scale."""

    title: str
    rows: str  # heading of the rows
    reduced: str | None  # how it differs from the paper's setting; None if it does not
    cells: Callable[["Load"], Iterator[Cell]]
    by_decay: bool = False  # columns are weight decays; accuracy over them is drawn


Load = Callable[..., Document]
"""(file name, *overrides) → document, with the overrides of the command line."""

Pair = tuple[float | None, float | None]
"""Published: decoupled, fednar."""

CIFAR10: Mapping[str, Mapping[str, Pair]] = {  # by preset and α
    "fedavg": {"0.3": (85.63, 87.57), "1": (88.37, 89.55), "10": (89.49, 90.21)},
    "fedprox": {"0.3": (85.62, 87.48), "1": (88.42, 89.46), "10": (89.44, 90.15)},
    "scaffold": {"0.3": (86.69, 88.70), "1": (89.54, None), "10": (90.51, None)},
    "fedexp": {"0.3": (87.72, 87.46), "1": (88.69, 89.34), "10": (88.92, 89.86)},
    "fedavgm": {"0.3": (90.36, 90.22), "1": (91.53, 91.41), "10": (92.11, 91.37)},
    "fedadam": {"0.3": (84.33, None), "1": (87.75, 87.88), "10": (88.76, None)},
}
WEIGHT_DECAY: Mapping[str, Mapping[float, Pair]] = {  # by preset and weight decay, α = 0.3
    "fedavg": {
        0.0001: (78.88, None), 0.001: (79.47, None), 0.01: (83.14, 82.58), 0.03: (87.10, 86.09), 0.05: (85.63, 87.57),
        0.1: (76.42, 85.13),
    },
    "scaffold": {
        0.0001: (79.79, None), 0.001: (80.05, None), 0.01: (83.93, None), 0.05: (86.69, 88.70), 0.1: (77.16, 87.24),
    },
}  # fmt: skip
SHAKESPEARE: Mapping[str, Pair] = {
    "fedavg": (40.89, 42.71),
    "fedprox": (40.40, 42.59),
    "scaffold": (50.85, 49.99),
    "fedexp": (None, None),
    "fedavgm": (None, None),
    "fedadam": (None, None),
}


def _iter_both(load: Load, file: str, row: str, column: str, published: Pair, *overrides: str) -> Iterator[Cell]:
    for regularizer, reached in zip(REGULARIZERS, published, strict=True):
        document = load(file, f"regularizer.name={regularizer}", *overrides)
        yield Cell(row, column, regularizer, document.experiment, reached)


def _iter_cifar10(load: Load) -> Iterator[Cell]:
    for preset in PRESETS:
        for alpha in ALPHAS:
            file = f"cifar10_alpha{alpha}_{preset}"
            yield from _iter_both(load, file, preset, f"α = {alpha}", CIFAR10[preset][alpha])


def _iter_weight_decay(load: Load) -> Iterator[Cell]:
    for preset, by_decay in WEIGHT_DECAY.items():
        for decay, published in by_decay.items():
            file = f"cifar10_alpha0.3_{preset}"
            yield from _iter_both(load, file, preset, f"{decay:g}", published, f"regularizer.weight_decay={decay:g}")


def _iter_shakespeare(load: Load) -> Iterator[Cell]:
    for preset in PRESETS:
        yield from _iter_both(load, f"shakespeare_{preset}", preset, "test accuracy", SHAKESPEARE[preset])


def _iter_small_cifar10(load: Load) -> Iterator[Cell]:
    for preset in PRESETS:
        full = load(f"cifar10_alpha0.3_{preset}").experiment
        own = full.algorithm.model_dump(exclude_none=True)
        settings = [f"algorithm.{key}={value}" for key, value in own.items() if not key.startswith("local_lr")]
        settings.append(f"regularizer.weight_decay={full.regularizer.weight_decay:g}")
        yield from _iter_both(load, "small_cifar10", preset, "α = 0.3", (None, None), *settings)


def _build_compared(file: str) -> Callable[[Load], Iterator[Cell]]:
    """Builds cells for the weight decays in a file's ``compare`` section."""

    def cells(load: Load) -> Iterator[Cell]:
        document = load(file)
        for decay in document.compare.weight_decays or ():
            override = f"regularizer.weight_decay={decay:g}"
            yield from _iter_both(load, file, document.experiment.algorithm.name, f"{decay:g}", (None, None), override)

    return cells


LENET = "LeNet in place of ResNet-18, 10 of 100 clients per round, 10 steps of 50, 100 rounds, η_0 = 0.1, A = 1"
HEART = Table(
    "Heart disease in four hospitals",
    "weight decay",
    "not of the paper",
    _build_compared("heart_disease"),
    by_decay=True,
)
TABLES: Mapping[tuple[str, str], Table] = {
    ("cifar10", "full"): Table("CIFAR-10, ResNet-18, six backbones", "preset", None, _iter_cifar10),
    ("cifar10", "small"): Table("CIFAR-10, six backbones", "preset", LENET, _iter_small_cifar10),
    ("weight_decay", "full"): Table(
        "CIFAR-10 over weight decays, α = 0.3", "preset", None, _iter_weight_decay, by_decay=True
    ),
    ("weight_decay", "small"): Table(
        "CIFAR-10 over weight decays, α = 0.3", "preset", LENET, _build_compared("small_cifar10"), by_decay=True
    ),
    ("shakespeare", "full"): Table(
        "Shakespeare, six-layer transformer, six backbones", "preset", None, _iter_shakespeare
    ),
    ("shakespeare", "small"): Table(
        "Shakespeare by role over weight decays",
        "preset",
        "a transformer of 2 layers in place of 6, 5 of 50 roles per round, 10 steps of 20, 30 rounds, A = 1",
        _build_compared("small_shakespeare"),
        by_decay=True,
    ),
    ("heart_disease", "full"): HEART,
    ("heart_disease", "small"): HEART,
}
NAMES = tuple(dict.fromkeys(name for name, _ in TABLES))
DATA_KEYS = {"cifar10": "CIFAR-10", "shakespeare": "Shakespeare", "heart_disease": "the hospitals' files"}


def build_data_overrides(kind: str, path: str) -> dict[str, tuple[str, ...]]:
    """Returns overrides for data at ``path``, by the start of the names of the files of PAPER that read this kind."""
    if kind == "cifar10" and path.endswith(".npz"):
        npz = (f"data.path={path}",)
        return {
            "small_cifar10": npz,
            "cifar10_": (*npz, "data.source=npz", "data.directory=null", "data.download=null"),
        }
    if kind == "cifar10":
        small = ("data.source=cifar10", f"data.directory={path}", "data.path=null")
        return {"small_cifar10": small, "cifar10_": (f"data.directory={path}",)}
    if kind == "shakespeare":
        return {"small_shakespeare": (f"data.path={path}",), "shakespeare_": (f"data.path={path}",)}
    return {"heart_disease": (f"data.directory={path}",)}


def load_cell(overrides: Mapping[str, tuple[str, ...]], own: tuple[str, ...], file: str, *more: str) -> Document:
    """Loads a file of PAPER with overrides: the place of its data, those of the cell, then those of the user."""
    where = [value for prefix, values in overrides.items() if file.startswith(prefix) for value in values]
    return load_document(PAPER / f"{file}.yaml", [*where, *more, *own])
