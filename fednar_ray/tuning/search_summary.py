"""Summarizes searches from their files, for ``fednar runs``."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from fednar_ray.config import yaml_text
from fednar_ray.core.errors import BadInput
from fednar_ray.tracking.locks import is_held
from fednar_ray.tracking.run_lookup import get_change_time
from fednar_ray.tracking.run_summary import FINISHED, RUNNING, STOPPED, UNFINISHED, format_time
from fednar_ray.tuning.trial_table import RUNNING as TRIAL_RUNNING
from fednar_ray.tuning.trial_table import TrialTable, list_searches

log = logging.getLogger("fednar_ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSummary:
    """One search of ``fednar runs``."""

    name: str
    started: str | None  # when, in ISO format and local time; None if that is unknown
    trials: int  # ended so far
    keys: tuple[str, ...]  # what it searches
    status: str
    why: str | None  # the stop rule that ended it early
    metric: str  # what guides it
    best_value: float | None  # None until a trial has trained all rounds
    best_trial: str | None
    run_id: str | None  # its parent run in MLflow


def list_search_summaries() -> Iterator[SearchSummary]:
    """Yields the searches of this directory, newest first. A damaged one is left out, and a warning names it."""
    found = []
    for name in list_searches():
        try:
            table = TrialTable.load(name)
            found.append((get_change_time(table.files.search_yaml), _summarize(table)))
        except BadInput as problem:
            log.warning("left out: %s", problem)
    yield from (summary for _, summary in sorted(found, key=lambda pair: pair[0], reverse=True))


def _summarize(table: TrialTable) -> SearchSummary:
    search = _read_settings(table)
    best = table.find_best(search["mode"])
    status, why = _find_status(table)
    return SearchSummary(
        name=table.name,
        started=format_time(table.files.search_yaml),
        trials=len(table.trials) - table.count(TRIAL_RUNNING),
        keys=tuple(search["space"]),
        status=status,
        why=why,
        metric=search["metric"],
        best_value=None if best is None else best.value,
        best_trial=None if best is None else best.name,
        run_id=table.run_id,
    )


def _read_settings(table: TrialTable) -> dict[str, str]:
    """Reads the search section that the search was started with. Raises BadInput if it is missing or damaged."""
    path = table.files.search_yaml
    try:
        search = yaml_text.parse(path.read_text(encoding="utf-8"))["search"]
        return {"mode": search["mode"], "metric": search["metric"], "space": search["space"]}
    except (OSError, ValueError, yaml_text.NotYaml, KeyError, TypeError) as error:
        raise BadInput(f"{path} is not the file of a search: {error}") from None


def _find_status(table: TrialTable) -> tuple[str, str | None]:
    try:
        why = table.files.finished_mark.read_text(encoding="utf-8")
    except OSError:
        return (RUNNING if is_held(table.files.lock) else UNFINISHED), None
    return (STOPPED, why) if why else (FINISHED, None)
