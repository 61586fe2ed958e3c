"""Starts a comparison, or resumes one, and trains its runs."""

from collections.abc import Generator, Sequence
from contextlib import closing

from fednar_ray.config import CompareSettings, Document, flatten_chosen_settings
from fednar_ray.core.errors import ConfigError, Interrupted
from fednar_ray.core.generators import drain
from fednar_ray.core.metric_names import is_higher_better
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.callbacks import prepare_callbacks
from fednar_ray.experiments.comparison.record import ComparisonRecord, PlannedRun, plan_runs
from fednar_ray.experiments.comparison.result import Comparison
from fednar_ray.experiments.comparison.runs import ComparisonRuns, Progress, is_finished
from fednar_ray.experiments.comparison.together import choose_width
from fednar_ray.experiments.given import NOTHING_GIVEN, Given
from fednar_ray.experiments.placement import plan_execution
from fednar_ray.experiments.run_start import open_store
from fednar_ray.report.progress import ShowRound
from fednar_ray.tracking.identity import check_not_copied, read_identity
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_views import RunView
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.tags import KIND_TAG
from fednar_ray.tracking.tracker import RunTracker


def run_comparison(
    document: Document,
    session: RaySession,
    show: ShowRound,
    record: ComparisonRecord | None = None,
    given: Given = NOTHING_GIVEN,
) -> Comparison:
    """Runs ``iter_comparison`` to its end, and shows its progress.

    Args:
        document: The experiment, and what is varied.
        session: The Ray session that all runs share.
        show: Called after each round, with the number of rounds of all runs that are done.
        record: A comparison to resume.
        given: The objects that replace sections of the experiment.
    """

    def show_round(step: Progress) -> None:
        show(step.done, step.label, step.report.metrics, step.primary)

    with closing(iter_comparison(document, session, record, given)) as comparing:
        return drain(comparing, show_round)


def iter_comparison(
    document: Document,
    session: RaySession,
    record: ComparisonRecord | None = None,
    given: Given = NOTHING_GIVEN,
) -> Generator[Progress, None, Comparison]:
    """Trains every variant with every seed, each as a child of one MLflow run. The generator returns the comparison.

    Args:
        document: The experiment, and what is varied.
        session: The Ray session that all runs share.
        record: A comparison to resume: its finished runs are read, an interrupted one continues from its checkpoint,
            and the others are trained. Without one, a new comparison is started.
        given: The objects that replace sections of the experiment.

    Yields:
        The progress after each round.

    Raises:
        BadInput: Something that was given is wrong; raised before Ray starts.
        RunFailed: A run failed.
    """
    store, experiment_id = open_store(document.experiment) if record is None else _open_store_of(record)
    planned = plan_runs(document.experiment, document.compare) if record is None else record.runs
    to_train = [run for run in planned if record is None or not is_finished(record, run)]
    primary, width = _check(document, to_train, session, given)
    if record is None:
        run_id = store.create_run(experiment_id, f"{document.experiment.name} comparison", {KIND_TAG: "comparison"})
        directory = RunDirectory.of_run(document.experiment.name, run_id).path
        record = ComparisonRecord(directory=directory, document=document, runs=planned)
        resumed = False
    else:
        run_id, resumed = read_identity(record.directory).run_id, True
    with RunTracker(store, run_id, record.directory, resumed=resumed) as parent:
        if resumed:
            record = ComparisonRecord.load(record.directory)  # nobody else writes it from here on
            RunDirectory(record.directory).finished_mark.unlink(missing_ok=True)
        else:
            parent.log_params({**flatten_chosen_settings(document.experiment), **_build_params(document.compare)})
            parent.log_experiment(document.experiment)
            parent.log_view(_build_view(record.name, run_id, primary))
        record.document = document
        record.save()
        try:
            result = yield from ComparisonRuns(record, store, run_id, session, given, width).train_all(parent)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(f"resume it with: fednar compare --resume {record.name}") from interrupt
    RunDirectory(record.directory).finished_mark.touch()
    return result


def _open_store_of(record: ComparisonRecord) -> tuple[Store, str]:
    """Opens the store that a comparison was recorded in. No MLflow experiment is needed: its run exists."""
    check_not_copied(record.directory, "comparison")
    store = Store(read_identity(record.directory).tracking_uri)
    store.check()
    return store, ""


def _check(document: Document, to_train: Sequence[PlannedRun], session: RaySession, given: Given) -> tuple[str, int]:
    """Checks the experiment and the target before anything is trained, and then starts Ray if it is needed.

    Returns:
        The primary metric, and how many runs are trained together; an empty text and 1 if there is nothing to train.
    """
    if not to_train:
        return "", 1
    prepared = given.prepare(to_train[0].build_experiment(document.experiment), session)
    keys = {"accuracy": "target_accuracy", "rmse": "target_rmse"}
    task, wanted = prepared.federation.task, keys.get(prepared.primary, "target")
    wrong = [key for key in (*keys.values(), "target") if key != wanted and key in document.compare.model_fields_set]
    if refused := [key for key in wrong if getattr(document.compare, key) is not None]:
        what = task if prepared.primary in keys else f"the primary metric {prepared.primary}"
        raise ConfigError(
            tuple(
                f"compare.{key}: {getattr(document.compare, key):g} is not a target for {what}; set compare.{wanted}"
                for key in refused
            )
        )
    prepare_callbacks(prepared, given.build_callbacks())
    compiled = any(run.compiled for run in to_train)  # begun so, and continued so
    width = 1 if compiled else choose_width(document.compare, prepared, session, len(to_train))
    if width == 1:
        plan_execution(prepared, session)
    return prepared.primary, width


def _build_view(name: str, run_id: str, primary: str) -> RunView:
    return RunView(
        key=run_id[:8],
        name=f"{name}: best first",
        metrics=[name_in_mlflow(f"test_{primary}"), name_in_mlflow("clip_fraction")],
        params=["regularizer.name", "regularizer.weight_decay", "seed"],
        tags=[],
        ascending=not is_higher_better(primary),
        parent=run_id,
    )


def _build_params(settings: CompareSettings) -> dict[str, object]:
    return {f"compare.{key}": value for key, value in settings.model_dump(mode="json").items()}
