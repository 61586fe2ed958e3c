"""Saved views of MLflow's table of runs: its columns, the order of the rows and of the charts, and which runs it has.

MLflow's UI keeps what its button "Share" saves as a tag of the experiment, and opens it by ``viewStateShareKey``. This
is not a documented interface: ``tests/end_to_end/test_browser.py`` opens a view in the tested version of MLflow.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fednar_ray.tracking.tags import KIND_TAG, PARENT_TAG, RANK_TAG
from fednar_ray.tracking.ui_url import TRAINING_PAGES

VIEW_TAG_PREFIX = "mlflow.sharedViewState."  # MLflow's: followed by the key of a view
COMPRESSED = "deflate;"
RUNS_KEY = "runs"  # of the view of all runs of an experiment
WIDTH, LETTER_WIDTH = 29, 6  # pixels of a column beside its title, and of a letter there


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A view of the table of runs.

    Attributes:
        key: Identifies the view in its experiment.
        name: The name in the UI's list of views.
        metrics: Names in MLflow, the primary one first.
        params: Names of parameters.
        tags: Names of tags.
        ascending: Whether lower values of the first metric are better.
        ranked: Whether the runs have ranks, the tag by which the table is sorted then; otherwise by the first metric.
        parent: The run whose children are shown; None: the runs that are not nested in another one, folded.
    """

    key: str
    name: str
    metrics: Sequence[str]
    params: Sequence[str]
    tags: Sequence[str]
    ascending: bool = False
    ranked: bool = False
    parent: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns, as the UI names them."""
        named = {"metrics": self.metrics, "params": self.params, "tags": self.tags}
        return [f"{kind}.`{name}`" for kind, names in named.items() for name in names]

    def build_tag(self, milliseconds: int) -> tuple[str, str]:
        """Returns the experiment's tag that saves the view, as key and value."""
        text = zlib.compress(json.dumps(self._build_state()).encode())
        fields = {"name": self.name, "createdAt": milliseconds, "updatedAt": milliseconds}
        state = COMPRESSED + base64.b64encode(text).decode()
        return VIEW_TAG_PREFIX + self.key, json.dumps({**fields, "state": state})

    def _build_state(self) -> dict[str, Any]:
        columns = self.columns
        return {
            "orderByKey": f"tags.`{RANK_TAG}`" if self.ranked else columns[0],
            "orderByAsc": self.ranked or self.ascending,
            "searchFilter": "" if self.parent is None else f"tags.`{PARENT_TAG}` = '{self.parent}'",
            "selectedColumns": columns,
            "columnOrder": columns,
            "columnWidths": {column: WIDTH + LETTER_WIDTH * len(column.split("`")[1]) for column in columns},
            "runsHiddenMode": "SHOWALL",
            "compareRunCharts": [],  # the UI adds one per metric,
            "compareRunSections": [_build_section(group) for group in self._list_groups()],
            "isAccordionReordered": True,  # and appends the groups that are not listed
        }

    def _list_groups(self) -> list[str]:
        """Lists the groups of the metrics in their order, so that the charts of the primary metric come first."""
        return list(dict.fromkeys(name.rpartition("/")[0] for name in self.metrics if "/" in name))


def format_rank(rank: int) -> str:
    """Formats a rank as the value of its tag, which MLflow sorts as text."""
    return f"{rank:06d}"


def _build_section(group: str) -> dict[str, Any]:
    """Builds a section of charts, as the UI's own state has it."""
    own = {"isReordered": False, "deleted": False, "isGenerated": True}
    return {"uuid": f"fednar-{group}", "name": group, "display": True, **own}


def parse_view(value: str) -> dict[str, Any]:
    """Returns the state of a view in the value of its tag, as the UI's names. Raises ValueError if it is damaged."""
    try:
        text: str = json.loads(value)["state"]
        state = zlib.decompress(base64.b64decode(text.removeprefix(COMPRESSED), validate=True))
        found: dict[str, Any] = json.loads(state)
        return found
    except (KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"not a saved view: {error}") from error


def build_page_path(experiment_id: str, *, run_id: str | None = None, view: str | None = None) -> str:
    """Returns the path of a page of MLflow's UI: of a run, a view, or an experiment's runs."""
    page = "runs" if run_id is None else f"runs/{run_id}"
    shared = "" if view is None else f"&viewStateShareKey={view}"
    return f"/#/experiments/{experiment_id}/{page}?{TRAINING_PAGES}{shared}"


def get_view_key(tags: Mapping[str, str], run_id: str) -> str | None:
    """Returns the key of the view of a run's children; None for a run that is no search and no comparison."""
    return run_id[:8] if tags.get(KIND_TAG) in ("search", "comparison") else None
