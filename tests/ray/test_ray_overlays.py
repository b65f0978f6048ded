"""One of the paper's files with an overlay, trained a few steps and measured, from start to end."""

import shutil
from pathlib import Path

import pytest
from cli_run import ROOT, apart, good

from cmray.report.load import load_experiment


@pytest.mark.slow
def test_beyond_runs_whole_on_digits(tmp_path: Path):
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    experiments = tmp_path / "experiments"
    quick = [
        *("teacher.overrides={train.steps: 100, curve: null, resources.workers: 1}", "curve.every=10"),
        *("evaluate.num_samples=128", "search.num_samples=128", "curve.num_samples=64"),
    ]
    overlay = tmp_path / "quick.yaml"
    overlay.write_text("replace: {train.steps: {1000: 20, 500: 10}}\n")  # over digits: one overlay over the other
    words = ["sweep", experiments / "beyond.yaml", "--overlay", experiments / "overlays" / "digits.yaml"]
    words += ["--overlay", overlay, *(f"--set={text}" for text in quick), "--tracking-uri", "none"]
    ran = good(apart(tmp_path / "run", *words, "--storage", tmp_path / "storage"))
    assert "ict" in ran.out
    record = load_experiment(tmp_path / "storage", "beyond-digits-quick")
    assert {t.status for t in record.trials} == {"finished"}
    assert [t.objective for t in record.trials if t.role == "trial"] == ["ct", "ict", "ect"]
    images = {t.result.nimg for t in record.trials if t.role == "trial" and t.result}
    assert images == {20 * 96}, "the same budget"
    for trial in record.trials:
        if trial.role == "trial":
            assert {e.provenance.nfe for e in trial.evaluations} == {1, 2}
            assert [s.nfe for s in trial.searches] == [2]
    report = tmp_path / "storage" / "beyond-digits-quick" / "report"
    assert (report / "curve.png").is_file()
    assert good(apart(tmp_path / "again", *words, "--storage", tmp_path / "storage")).out.count("done already") == 1
