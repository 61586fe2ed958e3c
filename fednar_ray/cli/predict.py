"""``fednar predict``: predict the rows of a table with the model of a run."""

from pathlib import Path

import click

from fednar_ray.cli.completion import complete_run
from fednar_ray.cli.csv_option import csv_option, parse_csv
from fednar_ray.core.errors import BadInput
from fednar_ray.core.stages import announce

NUMBER, PROBABILITY = "%.7g", "%.9g"
"""As many digits as float32 has, in which models compute; probabilities have two more, so that they add up to 1."""


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.argument("file", type=click.Path(path_type=Path))
@csv_option
@click.option(
    "--skip-bad-rows",
    is_flag=True,
    help="Leave the prediction of a row with a bad value empty. Default: refuse the file.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The CSV file to write. Default: print the CSV.")
def predict(run: str, file: Path, csv: tuple[str, ...], skip_bad_rows: bool, output: Path | None) -> None:
    """Predict the rows of FILE with the model of RUN.

    RUN is the name, the id or the directory of a finished run on tables; the name of an experiment stands for its
    newest run. A run of a comparison or a search has to be named exactly. FILE is a table with the columns that the
    run was trained on, in any order and with or without the label. It is read as the run's data.csv says, and what that
    leaves open is detected. The output is CSV with one row per row of FILE, in order: the column prediction, and for
    classes the probability of each class.
    """
    if output is not None and output.resolve() == file.resolve():
        raise BadInput(f"{output}: is the file with the rows; write the predictions to another with -o")
    announce(f"loading the model of {run}")
    from fednar_ray.experiments.predict import load_predictor

    predictor = load_predictor(run)
    predicted = predictor.predict_file(file, parse_csv(csv, predictor.written), skip_bad=skip_bad_rows)
    digits = NUMBER if predictor.schema.task == "regression" else PROBABILITY
    if output is None:
        click.echo(predicted.to_csv(index=False, float_format=digits), nl=False)
        return
    predicted.to_csv(output, index=False, float_format=digits)
    click.echo(f"wrote {output}: {len(predicted)} predictions of {predictor.run}")
