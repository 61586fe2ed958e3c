"""A trial's report is passed through Tune and stored in the table without loss."""

from fednar_ray.tracking.store import Store
from fednar_ray.tuning.trial_report import Lineage, TrialReport
from fednar_ray.tuning.trial_table import TrialEntry, TrialTable
from tests.support.searches import IGNORED_WARNINGS
from tests.support.trial_reports import build_report
from tests.support.trials import RATE, create_table

pytestmark = IGNORED_WARNINGS


def test_a_report_survives_the_conversion_to_tune_and_the_table_file(store: Store) -> None:
    lineage = Lineage(initial_values={RATE: 0.1}, changes={"2": {RATE: 0.05}})
    report = build_report(lines=("{}", "{}"), lineage=lineage, should_checkpoint=True)
    result = report.to_tune("validation_accuracy")
    assert (result["validation_accuracy"], result["rounds"], result["should_checkpoint"]) == (0.5, 2, True)
    of_tune = {**result, "time_total_s": 3.0, "trial_id": "a"}
    assert TrialReport.from_tune(of_tune, "validation_accuracy") == report
    table = create_table(store)
    entry = table.trials["a"] = TrialEntry(name="trial-0000", values={RATE: 0.1})
    entry.update(report, {RATE: 0.05})
    table.save()
    assert TrialTable.load("small") == table
    assert (entry.initial_values, entry.values, entry.seconds) == ({RATE: 0.1}, {RATE: 0.05}, 1.5)
