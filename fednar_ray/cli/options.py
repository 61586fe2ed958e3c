"""Arguments and options that several commands share."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fednar_ray.cli.completion import Complete, complete_arguments
from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import BadInput, ConfigError, format_text
from fednar_ray.core.metric_names import find_primary_problem
from fednar_ray.core.store_uris import TRACKING_VARIABLE

if TYPE_CHECKING:
    from fednar_ray.config import Document

COMMANDS = {"run": "digits", "compare": "compare", "tune": "digits"}
"""The commands that train, each with the embedded file that it takes without FILE."""

NEWEST = "newest"
"""The value of ``--resume`` if no word follows it: the newest run or comparison of the experiment."""

F = TypeVar("F", bound=Callable[..., Any])

arguments = click.argument("arguments", nargs=-1, metavar="[FILE] [key=value …]", shell_complete=complete_arguments)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
register_option = click.option("--register", metavar="NAME", help="Register the (best) model in MLflow as NAME.")
ray_address = click.option(
    "--address", metavar="HOST:PORT", help="The Ray cluster to join. Default: RAY_ADDRESS, otherwise a local Ray."
)


def build_resume_option(what: str, metavar: str, references: str, complete: Complete) -> Callable[[F], F]:
    """Builds the option ``--resume [RUN]`` or ``--resume [NAME]`` of a command.

    Args:
        what: What is resumed, as the help text names it: "run".
        metavar: The word for its name in usage and help: "RUN".
        references: What may follow the option: "its name, id, or directory".
        complete: Completes the names in a shell.
    """
    return click.option(
        "--resume",
        is_flag=False,
        flag_value=NEWEST,
        callback=_check_resumed_name,
        metavar=f"[{metavar}]",
        shell_complete=complete,
        help=f"Resume the {what} {metavar}, given by {references}. Without {metavar} after it (or with '{NEWEST}'), "
        f"resume the newest {what} of the experiment, or start a new one if there is none.",
    )


def _check_resumed_name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Checks the word after ``--resume``: it always names a run or a comparison, never a FILE or an override.

    Raises:
        BadParameter: It is a FILE or an override; the message says where to write it.
    """
    is_override = value is not None and "=" in value.partition("?")[0]  # the query of a URI may have "="
    if value is None or not (is_override or value.endswith((".yaml", ".yml"))):
        return value
    raise click.BadParameter(
        f"{format_text(value)} is {'an override' if is_override else 'a FILE'}, not a name; write it before --resume: "
        f"{ctx.command_path} {format_text(value)} --resume"
    )


def split_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into files and overrides. Raises BadInput for more than one FILE."""
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise BadInput(f"only one FILE can be given, not {format_text(' '.join(files))}; write overrides as key=value")
    return files, [word for word in words if "=" in word]


def read_document(words: Sequence[str], command: str) -> "Document":
    """Reads what one of ``COMMANDS`` is to do: the file, or the command's embedded one, with the overrides.

    Raises:
        ConfigError: The file or an override is wrong.
    """
    from fednar_ray.config import load_document, load_embedded

    files, overrides = split_arguments(words)
    to_search = command == "tune"
    if files:
        document = load_document(files[0], overrides, to_search=to_search)
    else:
        document = load_embedded(COMMANDS[command], overrides, to_search=to_search)
    evaluation = (
        document.experiment.evaluation
    )  # from Python, functions may be given with an experiment: prepare checks
    problem = find_primary_problem(evaluation.primary, evaluation.own_metrics)
    if problem is not None:
        raise ConfigError((problem,))
    return document


def read_document_to_train(words: Sequence[str], command: str) -> "Document":
    """Reads a document that is trained here.

    Raises:
        ConfigError: The file or an override is wrong.
        BadInput: The tracking store's address contains a password, or this is a Ray job whose results would be lost.
    """
    from fednar_ray.cluster.addresses import check_results_outlive_job

    document = read_document(words, command)
    if document.experiment.tracking.uri is None:
        check_address(TRACKING_VARIABLE, os.environ.get(TRACKING_VARIABLE))
    check_results_outlive_job(document, command)
    return document


def check_registration(name: str | None, uri: str | None) -> None:
    """Checks that MLflow at ``uri`` can register a model as ``name``. Raises BadInput if not; None checks nothing."""
    if name is not None:
        from fednar_ray.tracking import registration
        from fednar_ray.tracking.store import Store

        registration.check_registration(Store(uri), name)
