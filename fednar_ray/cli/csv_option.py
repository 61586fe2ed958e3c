"""The option ``--csv`` of commands that read tables: how text files are written, with the keys of ``data.csv``."""

from typing import TYPE_CHECKING, Any

import click

from fednar_ray.core.errors import BadInput

if TYPE_CHECKING:
    from fednar_ray.config.tables import CsvSettings

csv_option = click.option(
    "--csv",
    multiple=True,
    metavar="KEY=VALUE",
    help="How text files are written, as in data.csv: separator=';', decimal=, or encoding=cp1250. Repeat it for "
    "several keys. What is not given is detected; null detects it in any case.",
)


def parse_csv(given: tuple[str, ...], base: "CsvSettings | None" = None) -> "CsvSettings":
    """Parses the values of ``--csv``.

    Args:
        given: The texts ``KEY=VALUE``. ``null`` stands for detection, and ``\\t`` for a tab.
        base: The settings that they override.

    Raises:
        BadInput: A text is not KEY=VALUE. ConfigError: A key or a value does not exist.
    """
    from fednar_ray.config.tables import validate_csv

    values: dict[str, Any] = {} if base is None else base.model_dump(exclude_unset=True)
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--csv: {text!r}: should be KEY=VALUE, such as separator=';'")
        values[key.strip()] = None if value == "null" else value.replace("\\t", "\t")
    return validate_csv(values, "--csv ")
