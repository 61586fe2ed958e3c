"""What the parent run of a search records in MLflow: its settings and view, its best experiment, and its answer."""

import json
from dataclasses import asdict

from fednar_ray.config import Document, Experiment, SearchSettings, dump, flatten_chosen_settings
from fednar_ray.report.notes import note_search
from fednar_ray.report.search_answer import SearchOutcome
from fednar_ray.tracking.file_writes import replace_file
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.notes import Note
from fednar_ray.tracking.run_views import RunView
from fednar_ray.tracking.searches import ABOUT
from fednar_ray.tracking.tags import BEST_RUN_ID_TAG, BEST_TRIAL_TAG, STATUS_TAG
from fednar_ray.tracking.tracker import RunTracker
from fednar_ray.tuning.final_runs import FinalRuns, count_final_runs, get_last
from fednar_ray.tuning.trial_table import TrialEntry, TrialTable

SPECIFIC = {"points", "stop", "baseline"}  # sections of a search whose keys are no parameters in MLflow


def log_inputs(parent: RunTracker, table: TrialTable, document: Document) -> None:
    """Logs the experiment and the search section once, also if the search is resumed."""
    if table.described:
        return
    assert document.search is not None
    search = document.search.model_dump(mode="json")
    chosen = {
        *document.search.model_dump(exclude_unset=True),
        *(key.removeprefix("search.") for key in ABOUT),
    } - SPECIFIC
    described = {f"search.{key}": value for key, value in search.items() if key in chosen and value is not None}
    described |= {"search.scheduler": document.search.scheduler.name, "search.space": json.dumps(search["space"])}
    described["search.baseline"] = json.dumps(search["baseline"])
    parent.log_params({**flatten_chosen_settings(document.experiment), **described})
    parent.log_experiment(document.experiment)
    parent.log_file(table.files.search_yaml)
    parent.log_view(_build_view(table, document.search))
    table.described = True
    table.save()


def log_order(parent: RunTracker, table: TrialTable, search: SearchSettings) -> None:
    """Logs the results of all trials, best first, and sorts the saved view likewise, below the final runs."""
    parent.log_table(table.build_results(search.mode), table.files.results_table.name)
    for rank, entry in enumerate(table.rank(search.mode), start=count_final_runs(search)):
        if entry.run_id is not None:
            parent.log_rank(entry.run_id, rank)
    parent.log_view(_build_view(table, search, ranked=True))


def _build_view(table: TrialTable, search: SearchSettings, *, ranked: bool = False) -> RunView:
    test = f"test_{search.metric.removeprefix('validation_')}"
    return RunView(
        key=table.parent_id[:8],
        name=f"{table.name}: best first",
        metrics=[name_in_mlflow(search.metric), name_in_mlflow(test)],
        params=list(search.space),
        tags=[STATUS_TAG],
        ascending=search.mode == "min",
        ranked=ranked,
        parent=table.parent_id,
    )


def log_best(parent: RunTracker, table: TrialTable, experiment: Experiment) -> None:
    """Writes the best experiment as a file for ``fednar run``, and logs it."""
    path = table.files.best_yaml
    replace_file(path, dump(experiment))
    parent.log_file(path)


def log_outputs(
    parent: RunTracker, table: TrialTable, search: SearchSettings, best: TrialEntry, final: FinalRuns
) -> None:
    """Logs the best trial's values, and the metrics that judge the search; its final runs have the others."""
    assert best.value is not None
    metric, test = name_in_mlflow(search.metric), name_in_mlflow(final.test_metric)
    parent.log_metrics(
        {
            f"best/{metric}": best.value,
            f"baseline/{metric}": get_last(final.baseline[0], search.metric),
            f"best/{test}": final.best_test,
            f"baseline/{test}": final.baseline_test,
        }
    )
    parent.log_params({f"best.{key}": value for key, value in best.values.items()})
    parent.log_tags({BEST_TRIAL_TAG: best.name, BEST_RUN_ID_TAG: final.best[0].run_id})
    parent.link_model(final.best[0].run_id)
    parent.log_note(_describe(table, search, best, final), table.name)


def _describe(table: TrialTable, search: SearchSettings, best: TrialEntry, final: FinalRuns) -> Note:
    trials = table.rank(search.mode)
    outcome = SearchOutcome(
        trials=len(trials),
        metric=search.metric,
        best_value=best.value,
        best_values=best.values,
        test_metric=final.test_metric,
        best_tests=final.best_tests,
        baseline_tests=final.baseline_tests,
        baseline_changes=search.baseline,
        clipped=final.clipped,
    )
    view, report = table.parent_id[:8], f"{table.files.report.name}/index.html"
    return note_search(outcome, [asdict(entry) for entry in trials], view, report)
