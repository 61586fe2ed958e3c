"""Notes, which MLflow's UI shows first on the page of a run, and above the runs of an experiment."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fednar_ray.tracking.ui_url import TRAINING_PAGES

EXPERIMENT, RUN = "{experiment}", "{run}"
"""What stands for MLflow's ids in a note that is written before they are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a reader of a run should see first.

    Attributes:
        answer: What came out.
        figures: The key figures, by name.
        report: The artifact with the whole report; None if there is none.
        view: The key of the saved view of the run's children; None if it has none.
        picture: The artifact with a picture of the result; None if it has none.
    """

    answer: str
    figures: Mapping[str, str] = field(default_factory=dict)
    report: str | None = None
    view: str | None = None
    picture: str | None = None

    def build_markdown(self) -> str:
        """Returns the note of the run as Markdown, with placeholders for MLflow's ids.

        MLflow's UI shows the first lines only, so the links come before the table.
        """
        picture = [f"![curves](get-artifact?path={self.picture}&run_uuid={RUN})"] if self.picture is not None else []
        return "\n\n".join([f"**{_escape(self.answer)}**", *self._build_links(), *self._build_table(), *picture])

    def build_experiment_markdown(self, run_name: str) -> str:
        """Returns the note of the experiment of the run: the newest answer, and where it comes from."""
        page = f"#/experiments/{EXPERIMENT}/runs/{RUN}?{TRAINING_PAGES}"
        links = [f"[{_escape(run_name)}]({page})", *self._build_links()]
        return "\n\n".join([f"Newest result: **{_escape(self.answer)}**", " · ".join(links)])

    def _build_table(self) -> list[str]:
        rows = [f"| {_escape(name)} | {_escape(value)} |" for name, value in self.figures.items()]
        return ["\n".join(["| | |", "|---|---|", *rows])] if rows else []

    def _build_links(self) -> list[str]:
        table = f"#/experiments/{EXPERIMENT}/runs?{TRAINING_PAGES}&viewStateShareKey={self.view}"
        report = f"#/experiments/{EXPERIMENT}/runs/{RUN}/artifacts/{self.report}?{TRAINING_PAGES}"
        pages: Sequence[tuple[str, str | None]] = (
            ("Report", self.report and report),
            ("All runs, best first", self.view and table),
            ("Their charts", self.view and f"{table}&compareRunsMode=CHART"),
        )
        links = [f"[{name}]({page})" for name, page in pages if page]
        return [" · ".join(links)] if links else []


def insert_ids(text: str, experiment_id: str, run_id: str) -> str:
    """Replaces the placeholders of a note by MLflow's ids."""
    return text.replace(EXPERIMENT, experiment_id).replace(RUN, run_id)


def _escape(text: str) -> str:
    return re.sub(r"([\\|_*`\[\]<])", r"\\\1", text)
