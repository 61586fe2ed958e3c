"""The package's errors. Every argument is passed to ``super().__init__``, so errors survive pickling through Ray.

``BadInput`` and its subclasses can be fixed by the user (exit code 2, no traceback). ``RunFailed`` and its subclasses
end a run that had started (exit code 1).
"""

import reprlib
from collections.abc import Sequence

from fednar_ray.core.exclusion import ExclusionReason

MEMORY_TEXT = "can't allocate memory"
SHOWN_NAMES = 5  # names in a message


class FednarError(Exception):
    """The base class of every error that this package raises on purpose."""


class BadInput(FednarError):
    """An input is wrong. Nothing has been trained."""


class ConfigError(BadInput):
    """An experiment that cannot be run. ``problems`` has one line per problem: place, value, what would be right."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class DataError(BadInput):
    """Examples or labels that cannot be trained on."""


class ModelError(BadInput):
    """A model that does not fit the data, or that cannot be trained as one flat float32 vector."""


class RayUnavailable(BadInput):
    """No Ray cluster answers at the address given."""


class TrackingUnavailable(BadInput):
    """The MLflow tracking store does not answer."""


class StorageUnavailable(BadInput):
    """The storage for checkpoints cannot be used."""


class CapacityError(BadInput):
    """The cluster has no room for the requested actors. The message says what would fit."""


class DeviceError(FednarError):
    """A process cannot use the GPU that it was given, or cannot use it any more."""


class RunFailed(FednarError):
    """A run that had started cannot continue."""


class CheckpointError(RunFailed):
    """A checkpoint cannot be written, or none can be read."""


class InconsistentModel(RunFailed):
    """A model's forward pass does something in training that it did not do in the trial before round 0."""


class CompilationFailed(RunFailed):
    """The local step of a run that was decided to be compiled cannot be compiled where it is trained."""


class BuffersChanged(InconsistentModel):
    """Training changed buffers that were constant in the trial before round 0. ``names`` are their names."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.names = names

    def __str__(self) -> str:
        return (
            f"training changed buffer {', '.join(self.names)}, which it had not changed in the trial before round 0, "
            "so clients would influence each other; change a buffer in every training step, or in none"
        )


class UserCodeExited(BadInput):
    """A model or function of the user called ``sys.exit``, or raised something else that is no ``Exception``.

    In training it is treated as the failure of a client.
    """


class RoundAborted(RunFailed):
    """A round from which too few client updates remain. ``cause``: why the first of them was excluded, if known."""

    def __init__(self, round_index: int, reason: str, cause: ExclusionReason | None = None) -> None:
        super().__init__(round_index, reason, cause)
        self.round_index = round_index
        self.reason = reason
        self.cause = cause

    def __str__(self) -> str:
        return f"round {self.round_index} aborted: {self.reason}"


class SiloRefused(FednarError):
    """A client does not do what secure aggregation asks of it, because its update could be computed then."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with what the user can do next.

    Attributes:
        next_step: A phrase such as ``resume it with: fednar tune --resume digits``.
    """

    def __init__(self, next_step: str) -> None:
        super().__init__(next_step)
        self.next_step = next_step


def first_line(error: BaseException, limit: int = 300) -> str:
    """Returns the first line of an error's text, at most ``limit`` characters of it; its type if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:limit]


def is_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out. On the CPU, torch raises a RuntimeError for this."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)  # torch's, or Ray's
    return named or isinstance(error, MemoryError) or MEMORY_TEXT in str(error)


def is_of_device(error: BaseException) -> bool:
    """Returns whether a GPU failed. A CUDA error leaves the process with a context that cannot be used again."""
    return "CUDA error" in str(error) and not is_of_memory(error)


def check_device_works(error: BaseException) -> None:
    """Raises DeviceError if an error shows that this process cannot use its GPU any more, so that it must end."""
    if is_of_device(error):
        raise DeviceError(f"the process cannot use its GPU any more: {first_line(error)}") from error


class _Brief(reprlib.Repr):
    """Shows the start of a value that may be large or deeply nested."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlong, self.maxstring, self.maxother = 3, 60, 120, 120
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 12

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if abs(x) < 10**100 else f"a number of {x.bit_length()} bits"


def format_value(value: object) -> str:
    """Returns a value as messages show it: its ``repr``, cut if it is long."""
    text = _Brief().repr(value)
    return text if len(text) <= 400 else f"{text[:400]}…"


def format_names(names: Sequence[str]) -> str:
    """Joins the first names for a message, and says how many more there are."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def format_text(text: object) -> str:
    """Returns a text as messages show it: control characters as escapes, cut if it is long."""
    whole = "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(text))
    return whole if len(whole) <= 500 else f"{whole[:400]}…{whole[-60:]}"
