"""The settings of the user's own tables: one file per client, or one file for all clients."""

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import ValidationError

from fednar_ray.config import problems
from fednar_ray.config.base import Example, Settings, Share
from fednar_ray.config.source_base import ColumnSettings, GroupedSettings
from fednar_ray.core.errors import ConfigError


class CsvSettings(Settings):
    """How .csv and .tsv files are written. What is null is detected, file by file."""

    separator: Annotated[str | None, Example(";")] = None
    """The character between two values. null: a comma, or a tab in .tsv files, unless only one of ``;``, tab, ``|`` and
    comma gives all rows the same number of values."""
    decimal: Annotated[Literal[".", ","] | None, Example(",")] = None
    """The decimal sign. null: a comma if a column needs it and no value has a decimal point, else a point."""
    encoding: Annotated[str | None, Example("cp1250")] = None
    """The encoding of the text, such as ``cp1250``. null: UTF-8, or UTF-16 with its mark, else Windows-1252."""

    @field_validator("separator")
    @classmethod
    def _separator_is_a_mark(cls, mark: str | None) -> str | None:
        if mark is not None and (len(mark) != 1 or mark.isalnum() or mark in '\r\n".+-_'):
            raise ValueError('is no separator; write one character, such as ";" or "\\t"')
        return mark

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, name: str | None) -> str | None:
        if name is None:
            return None
        try:
            "a".encode(name)  # raises for codecs that are not of text, too
        except LookupError:
            raise ValueError("is no encoding of text; write, for example, utf-8 or cp1252") from None
        return codecs.lookup(name).name


def validate_csv(values: Mapping[str, Any], place: str) -> CsvSettings:
    """Validates how text files are written, given outside an experiment.

    Args:
        values: Keys of ``data.csv`` → value.
        place: What the place of a problem starts with, such as ``csv.``.

    Raises:
        ConfigError: A key does not exist, or its value is invalid. It lists every problem.
    """
    try:
        return CsvSettings.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(problems.describe_section(error, CsvSettings, place)) from None


class TabularSettings(ColumnSettings):
    """The settings of the user's own tables: how columns are read, and what is held out."""

    features: Annotated[Annotated[tuple[str, ...], Field(min_length=1)] | None, Example(("age", "weight"))] = None
    """The columns, or arrays of .npz files, that are inputs. null: all columns but the label, or the array x."""
    label: Annotated[str, Example("readmitted")] = "y"
    """The column, or the array, that is to be predicted."""
    exclude: Annotated[tuple[str, ...], Example(("patient",))] = ()
    """Columns that are not inputs, such as a patient's number. They are read only if ``features`` is null."""
    types: Annotated[Mapping[str, Literal["number", "category", "boolean", "date"]], Example({"zip": "category"})] = {}
    """The kind of columns, by name, where it should not follow from their values: {zip: category}."""
    csv: CsvSettings = CsvSettings()
    """How .csv and .tsv files are written."""
    positive: Annotated[str | None, Example("ill", "data.task=binary")] = None
    """For ``task: binary`` with text labels: the label that is class 1. null: the second in sorted order."""
    test_share: Annotated[Share, Example(0.3)] = 0.2
    """The share of each client's examples held out as the test set: the same examples with every seed, drawn without
    regard to their labels."""
    missing: Annotated[Literal["refuse", "drop", "mean"], Example("mean")] = "refuse"
    """How missing inputs are handled: as an error (refuse), by leaving out the row (drop), or by the mean of the input
    over all clients' training examples (mean)."""
    standardize: Annotated[bool, Example(False)] = True
    """Scale each input to mean 0 and standard deviation 1 over the training examples of all clients."""


class FolderSettings(GroupedSettings, TabularSettings):
    """The user's own tables, one file per client."""

    source: Annotated[Literal["folder"], Example("folder", "data.directory=clinics")] = "folder"
    directory: Annotated[str | None, Example("clinics")] = None
    """The directory of the files. null: ``execution.silos`` says where each file is."""

    @model_validator(mode="after")
    def _clients_are_files(self) -> Self:
        if self.partition.kind != "natural":
            raise ValueError("the clients of folder are its files: partition.kind can only be natural")
        return self


class TableSettings(TabularSettings):
    """The user's own table, one file with the rows of all clients."""

    source: Literal["table"] = "table"
    path: Annotated[str, Example("patients.csv")]
    """The file: .csv, .tsv or .parquet."""
    groups: Annotated[str | None, Example("hospital")] = None
    """The column whose values are the clients, which is no input. null: ``partition`` divides the rows."""
    test_path: Annotated[str | None, Example("new_patients.csv")] = None
    """A file whose rows are the test set, with the same columns. null: ``test_share`` is held out."""
    test_share: Annotated[Share, Example(0.3)] = 0.2
    """The share of each group's rows, or of all rows without ``groups``, held out as the test set: the same rows with
    every seed, drawn without regard to their labels."""

    @property
    def has_groups(self) -> bool:
        """Whether a column of groups is named."""
        return self.groups is not None

    @model_validator(mode="before")
    @classmethod
    def _natural_with_groups(cls, values: Any) -> Any:
        partition = values.get("partition", {}) if isinstance(values, dict) else None
        if not isinstance(partition, dict) or values.get("groups") is None:
            return values
        return {**values, "partition": {"kind": "natural", **partition}}

    @model_validator(mode="after")
    def _groups_are_no_input(self) -> Self:
        if self.groups is not None and self.groups in (self.label, *(self.features or ())):
            what = "the label" if self.groups == self.label else "an input"
            raise ValueError(f"groups names {self.groups}, which is {what}; it can be only one of them")
        return self
