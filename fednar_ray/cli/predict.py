"""``fednar predict``: predict the rows of a table with the model of a run."""

from pathlib import Path

import click

from fednar_ray.core.errors import BadInput


@click.command()
@click.argument("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The CSV file to write. Default: print the CSV.")
def predict(run: str, file: Path, output: Path | None) -> None:
    """Predict the rows of FILE with the model of RUN.

    RUN is the name, the id or the directory of a finished run on tables; the name of an experiment stands for its
    newest run. FILE is a table with the columns that the run
    was trained on, in any order and with or without the label. The output is CSV with one row per row of FILE, in
    order: the column prediction, and for classes the probability of each class.
    """
    if output is not None and output.resolve() == file.resolve():
        raise BadInput(f"{output}: is the file with the rows; write the predictions to another with -o")
    from fednar_ray.experiments.predict import load_predictor

    predicted = load_predictor(run).predict_file(file)
    if output is None:
        click.echo(predicted.to_csv(index=False), nl=False)
        return
    predicted.to_csv(output, index=False)
    click.echo(f"wrote {output}: {len(predicted)} predictions")
