"""``fednar tune``: search settings with Ray Tune."""

import json
from typing import TYPE_CHECKING

import click

from fednar_ray.cli.completion import complete_search
from fednar_ray.cli.options import (
    arguments,
    as_json,
    check_registration,
    ray_address,
    read_document_to_train,
    register_option,
)
from fednar_ray.cli.output import IMPORTS, START, STARTS_EARLY, build_console, quiet_libraries
from fednar_ray.core.errors import BadInput, Interrupted
from fednar_ray.core.stages import announce
from fednar_ray.execution.local_ray import PRELOADED_FOR_TRIALS
from fednar_ray.tracking.run_directory import SearchDirectory

if TYPE_CHECKING:
    from rich.console import Console

    from fednar_ray.config import Document
    from fednar_ray.execution.session import RaySession


@click.command()
@arguments
@as_json
@ray_address
@click.option(
    "--resume", metavar="NAME", shell_complete=complete_search, help="Resume the search NAME, as it was started."
)
@register_option
def tune(
    arguments: tuple[str, ...], as_json: bool, address: str | None, resume: str | None, register: str | None
) -> None:
    """Search the space in FILE's search section. Without FILE, search the embedded digits experiment.

    key=value overrides a setting, for example search.trials=8 or search.algorithm=random
    """
    if resume is not None and arguments:
        raise BadInput(f"--resume {resume} resumes the search as it was started; it takes no FILE and no key=value")
    announce(START)
    document = None if resume is not None else read_document_to_train(arguments, "tune")
    console = build_console(stderr=as_json)
    announce(IMPORTS)
    from fednar_ray.execution.session import RaySession

    with RaySession(address) as session:
        if click.get_current_context().find_root().obj == STARTS_EARLY and _may_start(document, resume):
            session.start_early(PRELOADED_FOR_TRIALS)
        quiet_libraries()
        _search(document, resume, register, session, console, as_json=as_json)


def _may_start(document: "Document | None", resume: str | None) -> bool:
    """Returns whether the search to resume exists, or the name of a new one is free. Later checks say what is wrong."""
    new = "" if document is None else document.search_name
    exists = SearchDirectory.named(resume or new).trial_table.exists()
    return exists == (resume is not None)


def _search(
    document: "Document | None",
    resume: str | None,
    register: str | None,
    session: "RaySession",
    console: "Console",
    *,
    as_json: bool,
) -> None:
    """Runs or resumes the search, and prints its result."""
    from fednar_ray.tuning import progress
    from fednar_ray.tuning.search import resume_search, start_search
    from fednar_ray.tuning.trial_table import find_tracking_uri

    name = resume or ("" if document is None else document.search_name)
    uri = find_tracking_uri(name) if document is None else document.experiment.tracking.uri
    if document is not None or uri is not None:  # otherwise there is no such search, which resume_search says
        check_registration(register, uri)
    with progress.show_search(console) as show:
        try:
            if document is not None:
                result = start_search(document, session, show, register)
            else:
                result = resume_search(name, session, show, register)
        except KeyboardInterrupt as interrupt:
            if find_tracking_uri(name) is None:  # it was interrupted before the search existed
                raise
            raise Interrupted(f"resume it with: fednar tune --resume {name}") from interrupt
    if as_json:
        click.echo(json.dumps(progress.summarize(result)))
    else:
        progress.print_result(console, result)
