"""What a command says when it fails: one message for people, and with ``--json`` also one object for programs."""

import errno
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import click

from fednar_ray.cli.signals import TERMINATED, describe_interrupt
from fednar_ray.core.errors import BadInput, ConfigError, FednarError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM)
PLACE = re.compile(r"(?P<place>(?:--[\w-]+ )?[^\s:]+(?:, line \d+(?:, column \d+)?)?): (?P<rest>.*)", re.DOTALL)
"""Messages begin with the place: a key, an option, a file or a run, and perhaps the line in the file."""


def report_failure(error: BaseException, words: Sequence[str]) -> int | None:
    """Prints why a command failed: to the standard error, and as JSON to the standard output if that was asked for.

    Args:
        error: What ended the command.
        words: The words after ``fednar``.

    Returns:
        The exit code; None if the error is a bug, whose traceback has to be shown.
    """
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    if isinstance(error, click.ClickException):
        error.show()
        failure = _build("bad input", 2, error.format_message(), [_describe_usage(error)])
    elif isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        message, code = describe_interrupt(error)
        click.echo(message, err=True)
        what, _, remedy = message.partition("; ")
        kind = "terminated" if code == TERMINATED else "interrupted"
        failure = _build(kind, code, message, [{"place": None, "problem": what, "remedy": remedy}])
    else:
        failure = _report_error(error)
    if as_json:
        click.echo(json.dumps(failure, ensure_ascii=False))
    return None if failure["kind"] == "bug" else int(failure["exit_code"])


def _report_error(error: BaseException) -> dict[str, Any]:
    if isinstance(error, BadInput):
        click.echo(f"error: {error}", err=True)
        lines = error.problems if isinstance(error, ConfigError) else (str(error),)
        return _build("bad input", 2, str(error), [split_problem(line) for line in lines])
    notes: Sequence[str] = getattr(error, "__notes__", ())
    if isinstance(error, FednarError):
        click.echo("; ".join([f"failed: {error}", *notes]), err=True)
        problem = {**split_problem(str(error)), **({"remedy": "; ".join(notes)} if notes else {})}
        return _build("failed", 1, str(error), [problem])
    problem_text = _find_disk_problem(error)
    if problem_text is not None:
        click.echo(f"failed: {problem_text}", err=True)
        return _build("failed", 1, problem_text, [split_problem(problem_text)])
    message = f"{type(error).__name__}: {error}"
    return _build("bug", 1, message, [{"place": None, "problem": message, "remedy": None}])


def _build(kind: str, exit_code: int, message: str, problems: Sequence[dict[str, str | None]]) -> dict[str, Any]:
    """Builds what ``--json`` prints in place of a result."""
    return {"error": message, "kind": kind, "exit_code": exit_code, "problems": list(problems)}


def split_problem(text: str) -> dict[str, str | None]:
    """Splits a message into its place, what is wrong there, and what to do about it.

    All messages have this form: ``place: what is wrong; what to do``. A part that one does not have is None.

    Examples:
        >>> split_problem("seed: -1 should be greater than or equal to 0")
        {'place': 'seed', 'problem': '-1 should be greater than or equal to 0', 'remedy': None}
    """
    found = PLACE.fullmatch(text)
    place, rest = (found["place"], found["rest"]) if found else (None, text)
    problem, _, remedy = rest.partition("; ")
    return {"place": place, "problem": problem, "remedy": remedy or None}


def _describe_usage(error: click.ClickException) -> dict[str, str | None]:
    """Describes a command line that Click refuses."""
    place = getattr(error, "option_name", None)
    if isinstance(error, click.BadParameter) and error.param is not None:
        place = max(error.param.opts, key=len)
    problem, _, remedy = error.message.partition("; ")
    return {"place": place, "problem": problem or error.format_message(), "remedy": remedy or None}


def _find_disk_problem(error: BaseException) -> str | None:
    """Finds what is wrong with the disk or the working directory; None if something else ended the command."""
    try:
        os.getcwd()
    except OSError:
        return f"the working directory, {os.environ.get('PWD', '')}, was deleted; start again from one that exists"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}"
    return None
