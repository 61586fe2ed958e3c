"""A search's report: read from MLflow, written beside the search, and put among the search's artifacts."""

from pathlib import Path

from fednar_ray.report import Report, write_report
from fednar_ray.tracking.mlflow import Store
from fednar_ray.tracking.searches import read_search

REPORT = "report"


def report_on(name: str, uri: str | None, directory: Path) -> Report:
    """Make the report of a search anew. Raises BadInput where the store does not answer, or has no such search."""
    store = Store(uri)
    store.check()
    record = read_search(store.uri, name)
    report = write_report(record, directory)
    store.log_files(record.run_id, directory, REPORT)
    return report
