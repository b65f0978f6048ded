"""Frames: every record is a row, types stay the same with and without rows, and opening them stays quick."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from report_factory import curve, evaluation, experiment, figure_three, search, teacher, trial, write

import cmray
from cmray.core.errors import CmrayError
from cmray.report.frames import frames
from cmray.report.provenance import models
from cmray.tracking.records import Event

NAMES = ("trials", "curves", "evaluations", "searches")


def test_every_record_is_a_row(tmp_path):
    record = figure_three()
    write(tmp_path, record)
    found = cmray.load_experiment("fig3", tmp_path)
    assert found.trials["trial"].tolist() == [t.name for t in record.trials]
    assert len(found.curves) == sum(len(e.metrics) for t in record.trials for e in t.events)
    assert len(found.evaluations) == sum(len(t.evaluations) for t in record.trials)
    assert len(found.searches) == sum(len(s.points) for t in record.trials for s in t.searches)
    assert found.record.name == "fig3"
    values = [e.value for t in record.trials for e in t.evaluations]
    assert found.evaluations["value"].tolist() == values


def test_frames_answer_the_figure_s_questions(tmp_path):
    """The best of panel N in one step, from the frames alone, is the one that the report names."""
    write(tmp_path, figure_three())
    fig3 = cmray.load_experiment("fig3", str(tmp_path))
    one = fig3.evaluations.query("metric == 'fd/digits' and nfe == 1").merge(fig3.trials)
    panel = one[one["panels"].map(lambda panels: "N" in panels)]
    assert panel.loc[panel["value"].idxmin(), "label"] == "heun · l2 · N=9"
    last = fig3.curves.query("nfe == 1").sort_values("step").groupby("label")["value"].last()
    assert last["heun · l2 · N=9"] == pytest.approx(3.1, abs=0.5)


def test_a_search_says_what_each_round_ended_in():
    found = search((3, 0.2, 9.0), (5, 0.7, 4.0), (6, 1.5, 3.0), (4, 0.3, 2.0), rounds=[2, 2], times=(80.0, 0.7, 0.3))
    unsure = [p.model_copy(update={"error": 0.1, "confirmed": 3.5, "tied": True}) for p in found.points[:1]]
    found = found.model_copy(update={"points": [*unsure, *found.points[1:]]})
    frame = frames(experiment(trial("a", searches=[found]))).searches
    assert frame.loc[0, ["index", "value", "error", "confirmed", "tied"]].tolist() == [3, 9.0, 0.1, 3.5, True]
    assert frame["round"].tolist() == [1, 1, 2, 2]
    assert frame["order"].tolist() == [0, 1, 2, 3]
    assert frame[frame["chosen"]]["sigma"].tolist() == [0.7, 0.3]
    assert set(frame["found"]) == {(80.0, 0.7, 0.3)}
    assert set(frame["nfe"]) == {3}


def test_curves_are_long_and_keep_budgets_apart():
    logged = Event(kind="train", step=50, nimg=6400, time=0.5, metrics={"loss": 0.25, "lr": 1e-3})
    points = curve(9.0, key="fd/digits@2")
    frame = frames(experiment(trial("a", events=[logged, *points]))).curves
    rows = frame[["kind", "step", "images", "metric", "value"]].values.tolist()
    assert rows == [["train", 50, 6400, "loss", 0.25], ["train", 50, 6400, "lr", 1e-3],
                    ["curve", 100, 12800, "fd/digits", 9.0]]  # fmt: skip
    assert frame["nfe"].isna().tolist() == [True, True, False]
    assert frame["nfe"].iloc[2] == 2
    assert frame["time"].iloc[0] == pd.Timestamp("1970-01-01T00:00:00.5Z")


def test_fields_of_the_configuration_keep_their_types(tmp_path):
    record = experiment(trial("a"), trial("b"), trial("c", status="waiting"))
    write(tmp_path, record)
    for name, objective in (("a", {"name": "cd", "num_sigmas": 9}), ("b", {"name": "ct"})):
        config = {"seed": 1, "train": {"ema": [0.9, 0.99], "lr": 1e-3}, "objective": objective}
        (tmp_path / "fig3" / name / "config.yaml").write_text(yaml.safe_dump(config))
    found = cmray.load_experiment("fig3", tmp_path).trials.set_index("label")
    assert found.loc["a", "config.objective.num_sigmas"] == 9
    assert isinstance(found.loc["a", "config.objective.num_sigmas"], int)
    assert found.loc["b", "config.train.ema"] == (0.9, 0.99)
    assert pd.isna(found.loc["b", "config.objective.num_sigmas"])
    assert pd.isna(found.loc["c", "config.seed"])
    assert found.groupby("config.train.ema").size().to_dict() == {(0.9, 0.99): 2}


def test_a_failure_is_told_in_its_last_line_and_missing_things_are_missing():
    failed = trial("a", status="failed", error="Traceback\n  line\nValueError: too hot\n")
    found = frames(experiment(teacher(), failed, trial("b", status="waiting"))).trials.set_index("label")
    assert found.loc["a", "failure"] == "ValueError: too hot"
    assert found["failure"].isna().tolist() == [True, False, True]
    assert found["steps"].isna().tolist() == [False, True, True]
    assert found["minutes"].isna().tolist() == [False, True, True]
    assert found.loc["edm teacher", "steps"] == 800


def test_types_are_the_same_without_rows():
    full, empty = frames(figure_three()), frames(experiment())
    for name in NAMES:
        assert len(getattr(full, name)) > 0
        assert getattr(empty, name).empty
        assert getattr(empty, name).dtypes.to_dict() == getattr(full, name).dtypes.to_dict(), name


def test_provenance_is_told_field_by_field():
    e = evaluation(2.0, time=3.0, nfe=2, times=[80.0, 0.66], searched=True, options={"k": 3}, reference_n=None)
    e = e.model_copy(update={"low": 1.5, "high": 2.75, "error": 0.25, "note": "said", "better": "higher"})
    (row,) = frames(experiment(trial("a", evaluations=[e]))).evaluations.to_dict("records")
    for name in ("value", "low", "high", "error", "note", "better", "seconds", "key"):
        assert row[name] == getattr(e, name), name
    assert pd.isna(row["spread"])
    for name, value in e.provenance.model_dump(exclude={"times", "options", "reference_n"}).items():
        assert row[name] == value, name
    assert row["times"] == (80.0, 0.66)
    assert row["options"] == '{"k": 3}'
    assert pd.isna(row["reference_n"])
    assert row["is_fid"] is False


def test_the_repr_says_what_there_is(tmp_path):
    write(tmp_path, figure_three())
    said = repr(cmray.load_experiment("fig3", tmp_path)).splitlines()
    assert said[0] == f"fig3 ({tmp_path / 'fig3'})"
    assert " ".join(said[1].split()) == "trials 12 rows 9 finished, 1 running, 1 failed, 1 waiting"
    assert "fd/digits" in said[2]
    assert said[4].endswith("points of 6 searches")
    assert max(len(line) for line in said[1:]) < 100


def test_storage_is_where_the_command_line_looks(tmp_path, monkeypatch):
    write(tmp_path / "cmray-data", experiment(trial("a"), name="here"))
    write(tmp_path / "elsewhere", experiment(trial("a"), name="there"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CMRAY_STORAGE", raising=False)
    assert cmray.load_experiment("here").record.folder == tmp_path / "cmray-data" / "here"
    monkeypatch.setenv("CMRAY_STORAGE", "elsewhere")
    assert cmray.load_experiment("there").trials["label"].tolist() == ["a"]
    with pytest.raises(CmrayError, match="no experiment 'here'"):
        cmray.load_experiment("here")


def test_an_unknown_experiment_is_one_clear_error(tmp_path):
    write(tmp_path, experiment(trial("a"), name="quickstart"))
    with pytest.raises(CmrayError, match=r"no experiment 'quickstrat'.*did you mean 'quickstart'"):
        cmray.load_experiment("quickstrat", tmp_path)


DOCS = Path(cmray.__file__).parents[1] / "docs" / "analysis.md"


def test_the_page_lists_every_column():
    sections = DOCS.read_text().split("\n**")[1:]
    listed = {section.split("**")[0]: section for section in sections}
    found = frames(figure_three())
    for name in NAMES:
        rows = [line.split("|")[1] for line in listed[name].splitlines() if line.startswith("| `")]
        columns = {column for row in rows for column in re.findall("`([^`]+)`", row)}
        shown = set(getattr(found, name).columns) - {"trial", "label"}
        shown -= {"metric", "n", "seed_first"} if name == "searches" else set()  # told beside `value`
        assert columns - {"config.*"} == shown, name


def test_the_page_s_examples_run(tmp_path, monkeypatch):
    write(tmp_path, figure_three())
    for i, file in enumerate(sorted((tmp_path / "fig3").glob("*/config.yaml"))):
        file.write_text(f"objective: {{num_sigmas: {{num_sigmas: {9 * (i % 2 + 1)}}}}}\n")
    monkeypatch.setenv("CMRAY_STORAGE", str(tmp_path))
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 4
    assert set(names["curves"]["config.objective.num_sigmas.num_sigmas"]) == {9, 18}


QUICK = """
import sys, time
began = time.perf_counter()
import cmray
heavy = {"torch", "ray", "mlflow", "numpy", "pandas", "pydantic"}
print(time.perf_counter() - began, *sorted(heavy & set(sys.modules)))
cmray.load_experiment("fig3", sys.argv[1])
print(*sorted({"torch", "ray", "mlflow", "matplotlib"} & set(sys.modules)))
"""


def test_importing_cmray_is_quick_and_loading_takes_no_torch(tmp_path):
    write(tmp_path, experiment(trial("a")))
    root = Path(cmray.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-c", QUICK, tmp_path], capture_output=True, text=True, check=True, cwd=root, timeout=120
    )
    first, second = ran.stdout.splitlines()
    assert len(first.split()) == 1, f"import cmray imports {first}"
    assert float(first) < 0.5
    assert second == "", f"load_experiment imports {second}"


def test_a_run_that_changed_its_number_of_workers_says_when():
    def event(step: int, workers: int) -> Event:
        return Event(kind="workers", step=step, nimg=step, time=0.0, metrics={"workers": workers})

    grown = trial("grown", events=[event(0, 4), event(300, 2), event(5200, 4)])
    steady = trial("steady", events=[event(0, 1)])
    assert models(experiment(grown, steady))["workers"].tolist() == ["4, 2 from step 300, 4 from step 5,200", "1"]
