"""What lies in analysis/ over finished runs does run: the notebook cell by cell, and the figures' script."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks import code_cells, is_clean
from report_factory import experiment, figure_three, trial, write

REPO = Path(__file__).resolve().parents[2]
NOTEBOOK = REPO / "analysis" / "experiment.ipynb"

RUN = """
import json, sys
from pathlib import Path
import pandas as pd
from matplotlib.figure import Figure
from notebooks import execute

told = {}
for name, value in execute(Path(sys.argv[1])).items():
    if isinstance(value, pd.DataFrame):
        told[name] = json.loads(value.reset_index().to_json(orient="records"))
    elif isinstance(value, Figure):
        value.canvas.draw()
        told[name] = {line.get_label(): list(map(float, line.get_ydata())) for line in value.axes[0].lines}
    else:
        told[name] = repr(value)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the notebook shows of a storage folder that holds a small experiment, by cell."""
    storage = tmp_path_factory.mktemp("storage")
    write(storage, figure_three().model_copy(update={"name": "quickstart"}))
    for folder, solver in (("heun-l2-N=9", "heun"), ("euler-l2-N=18", "euler")):
        (storage / "fig3" / folder / "config.yaml").write_text(f"seed: 0\nobjective: {{solver: {solver}}}\n")
    environment = {
        **os.environ,
        "CMRAY_STORAGE": str(storage),
        "MPLBACKEND": "Agg",
        "PYTHONPATH": f"{REPO}:{REPO / 'tests'}",
    }
    ran = subprocess.run(
        [sys.executable, "-c", RUN, NOTEBOOK], capture_output=True, text=True, env=environment, timeout=120, cwd=storage
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


def test_the_notebook_shows_the_experiment_it_opened(told):
    assert told["open"].startswith("quickstart (")
    assert [row["label"] for row in told["table"]][:2] == ["heun · digits · N=9", "heun · l2 · N=9"]
    assert told["table"][0]["value"] == 2.4
    assert told["curve"]["heun · l2 · N=9"][-1] == pytest.approx(3.1, abs=0.5)
    assert len(told["curve"]) == 10
    assert {row["label"]: row["sigma"] for row in told["search"]}["heun · l2 · N=9"] == 0.66
    solvers = {row["label"]: row["objective.solver"] for row in told["differences"]}
    assert (solvers["heun · l2 · N=9"], solvers["euler · l2 · N=18"]) == ("heun", "euler")
    assert told["costs"][-1]["label"] == "total"
    assert {row["nfe"] for row in told["published"]} == {1, 2}


def test_the_notebook_is_kept_without_outputs_and_opens_in_three_lines():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert is_clean(NOTEBOOK)
    lines = [line for line in code_cells(NOTEBOOK)[0]["source"] if line.strip()]
    assert len(lines) == 3
    assert "cmray.load_experiment(" in lines[1]
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def figures(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["figures.py", *map(str, arguments)])
    runpy.run_path(str(REPO / "analysis" / "figures.py"), run_name="__main__")


def test_the_figures_script_writes_a_folder_for_each_experiment(tmp_path, monkeypatch, capsys):
    storage = tmp_path / "storage"
    write(storage, experiment(trial("a"), name="one"))
    write(storage, experiment(trial("b"), name="two"))
    figures(monkeypatch, "--storage", storage, "--out", tmp_path / "all")
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"one", "two"}
    printed = capsys.readouterr().out.splitlines()
    assert all(Path(line).is_file() for line in printed)
    assert str(tmp_path / "all" / "two" / "table.csv") in printed
    figures(monkeypatch, "two", "--storage", storage, "--out", tmp_path / "some")
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["two"]


@pytest.mark.parametrize(("names", "said"), [(["tow"], "did you mean 'two'"), ([], "no experiment in")])
def test_the_figures_script_refuses_in_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, names, said):
    storage = tmp_path / "storage"
    if names:
        write(storage, experiment(name="two"))
    with pytest.raises(SystemExit) as ended:
        figures(monkeypatch, *names, "--storage", storage, "--out", tmp_path / "all")
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "all").exists()
