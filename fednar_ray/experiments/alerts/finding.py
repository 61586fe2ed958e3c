"""What a check of a run has found."""

from typing import NamedTuple


class Finding(NamedTuple):
    """What a check has found: what is wrong, its likely cause, and what to change. Each is part of a sentence."""

    what: str
    cause: str
    change: str
