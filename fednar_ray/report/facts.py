"""The facts about a run that its page shows and its journal does not have, as ``facts.json`` in the run directory."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from fednar_ray.core.errors import BadInput

SHOWN_CLIENTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """How a run was made. Whatever is not known is empty."""

    command: str = ""
    primary: str = ""  # the primary metric, without its split
    finished: str = ""  # date and time, with the offset from UTC
    machine: str = ""
    placement: str = ""
    gpus: float = 0.0  # of each actor that clients trained in; 0: on CPUs
    versions: Mapping[str, str] = field(default_factory=dict)
    data: str = ""  # what the data are called, with their digest
    examples: int = 0  # of all clients, for training
    test_examples: int = 0
    label_counts: tuple[tuple[int, ...], ...] = ()  # [clients, classes], of at most 200 clients
    class_names: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Writes the facts as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads facts; those of a run without the file are empty. Raises BadInput if the file is damaged."""
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            counts = tuple(tuple(map(int, row)) for row in fields.pop("label_counts"))
            return cls(**{**fields, "label_counts": counts, "class_names": tuple(fields["class_names"])})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} does not say how the run was made: {error}") from error


def list_facts(facts: RunFacts) -> list[tuple[str, str]]:
    """Lists the known facts as rows of a table: the command, the data, the machine and the versions."""
    rows = {
        "command": facts.command,
        "data": facts.data + (f", {facts.examples:,} training examples" if facts.examples else ""),
        "where": ", ".join(filter(None, (facts.machine, facts.placement))),
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    }
    return [(name, value) for name, value in rows.items() if value]
