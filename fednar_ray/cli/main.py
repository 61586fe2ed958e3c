"""The ``fednar`` command: its commands, its exit codes, and its messages for errors.

Exit codes: 0 done, 1 failure, 2 bad input, 130 interrupted, 143 terminated.
"""

import logging
import os
import sys

import click

from fednar_ray.cli.compare import compare
from fednar_ray.cli.config import config
from fednar_ray.cli.data import data
from fednar_ray.cli.doctor import doctor
from fednar_ray.cli.failures import report_failure
from fednar_ray.cli.init import init
from fednar_ray.cli.jobs import jobs, logs, stop
from fednar_ray.cli.output import STARTS_EARLY
from fednar_ray.cli.predict import predict
from fednar_ray.cli.report import report
from fednar_ray.cli.run import run
from fednar_ray.cli.runs import runs
from fednar_ray.cli.signals import handle_signals
from fednar_ray.cli.submit import submit
from fednar_ray.cli.suggest import suggest
from fednar_ray.cli.sync import sync
from fednar_ray.cli.tune import tune
from fednar_ray.cli.ui import ui
from fednar_ray.core.credentials import check_words
from fednar_ray.core.stages import open_lines
from fednar_ray.report.progress import write_stage


class _Commands(click.Group):
    """A group of commands that refuses words with a password, before a message can repeat them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        check_words(args)
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fednar-ray")
@click.pass_context
def cli(context: click.Context) -> None:
    """FedNAR on Ray: train federations, compare regularizers, search settings, browse the results in MLflow."""
    context.with_resource(open_lines(write_stage, repeat=not sys.stderr.isatty()))


for command in (
    init,
    run,
    runs,
    sync,
    compare,
    suggest,
    tune,
    predict,
    report,
    data,
    config,
    ui,
    submit,
    jobs,
    logs,
    stop,
    doctor,
):
    cli.add_command(command)


def main() -> None:
    """Runs the ``fednar`` command and exits."""
    handle_signals()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("fednar_ray").setLevel(logging.INFO)
    try:
        sys.path.append(os.getcwd())  # the user's algorithm.function, model.function and data.entry_point may lie here
        cli.main(standalone_mode=False, obj=STARTS_EARLY)
    except (Exception, KeyboardInterrupt) as error:
        code = report_failure(error, sys.argv[1:])
        if code is None:
            raise
        sys.exit(code)
