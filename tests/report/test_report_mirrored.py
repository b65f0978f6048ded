"""The files of a report reach MLflow, the page among them."""

import pytest
from report_factory import decay, evaluation, experiment, trial, write

from cmray.cluster.mirror import Mirror
from cmray.report.build import write_report
from cmray.report.load import load_experiment
from cmray.tracking.mlflow import MlflowTracker

pytestmark = pytest.mark.slow


def test_the_page_is_an_artifact_of_the_sweep(tmp_path):
    def warn(line: str) -> None:
        raise AssertionError(line)

    write(tmp_path, experiment(trial("a", events=decay(9, 2), evaluations=[evaluation(2.0)])))
    record = load_experiment(tmp_path, "fig3")
    files = write_report(record, record.folder / "report")
    mirror = Mirror(MlflowTracker(None, tmp_path, warn))
    mirror.open(record, {}, tmp_path)
    mirror.results(record, files, tmp_path)
    mirror.close("finished")
    (page,) = tmp_path.glob("mlartifacts/**/report/report.html")
    assert page.read_bytes() == files["report.html"].read_bytes()
    assert {path.name for path in page.parent.iterdir()} == set(files)
