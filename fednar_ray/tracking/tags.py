"""The names of all MLflow tags that this project sets or reads."""

PARENT_TAG = "mlflow.parentRunId"  # MLflow's: the id of the run that this one is nested in
USER_TAG = "mlflow.user"  # MLflow's: who started the run
SOURCE_TAGS = ("mlflow.source.name", "mlflow.source.type")  # MLflow's: the program that started the run
GIT_COMMIT_TAG = "mlflow.source.git.commit"  # MLflow's: the commit of the working directory, if it is a git checkout

NOTE_TAG = "mlflow.note.content"  # MLflow's: Markdown that its UI shows first; also of experiments

CONTEXT_TAG = "mlflow.data.context"  # MLflow's, of a data set: what it is used for
TRAINING = "training"  # the value of that tag for the data that clients train on

KIND_TAG = "fednar.kind"  # search, comparison, trial, best or baseline; absent for other runs
SEARCH_TAG = "fednar.search"  # the name of the search that the run is, or belongs to
SEARCH_ID_TAG = "fednar.search_id"  # of a search's parent run: an id that is known before MLflow gives the run's
WRITTEN_NOTE_TAG = "fednar.note"  # of an experiment: the note that was written last, unless somebody edited it
STATUS_TAG = "fednar.status"  # of a trial: finished, stopped early or failed
RANK_TAG = "fednar.rank"  # of a finished search's nested runs: the place in its saved view, as text of one length
TRIAL_TAG = "fednar.trial"  # of a trial: its name, such as trial-0007
FAILURE_TAG = "fednar.failure"  # of a failed trial: the reason
BEST_TRIAL_TAG = "fednar.best_trial"  # of a search's parent run: the name of the best trial
BEST_RUN_ID_TAG = "fednar.best_run_id"  # of a search's parent run: the MLflow run that retrained the best trial

RUN_NAME_TAG = "fednar.run"  # of a logged model: the name of its run
PRIMARY_TAG = "fednar.primary"  # of runs and comparisons: the primary metric, without its split
PLACEMENT_TAG = "fednar.placement"  # serial, pooled or dedicated
ACTORS_TAG = "fednar.actors"  # the number of actors; 0 in a serial run
VECTORIZE_TAG = "fednar.vectorize"  # the number of clients that train as one matrix
COMPILE_TAG = "fednar.compile"  # whether each local step is one compiled program, on or off
COMMAND_TAG = "fednar.command"  # the command as typed; absent if the run was started from Python
FEDNAR_VERSION_TAG = "fednar.version"  # the version of this package
RAY_VERSION_TAG = "ray.version"  # the version of Ray
TORCH_VERSION_TAG = "torch.version"  # the version of PyTorch

END_TAG = "fednar.end"  # why a run ended early: the error, or the interruption
WRITER_TAG = "fednar.writer"  # the process that wrote to the run last, as a token from its run directory
COPIED_FROM_TAG = "fednar.copied_from"  # the MLflow run of the directory that this run's directory was copied from
ABANDONED_TAG = "fednar.abandoned"  # "true" if another run has taken this one's place

IDENTICAL_TAG = "fednar.identical"  # of a comparison: which variants are the same because nothing was clipped

ALERTS_TAG = "fednar.alerts"  # the names of the alerts, separated by commas; "none" if there was none
ALERT_TAG_PREFIX = "fednar.alert."  # followed by the name of an alert: its message
