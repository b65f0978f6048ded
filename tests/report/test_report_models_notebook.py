"""analysis/models.ipynb, executed cell by cell on a small experiment called quickstart."""

from pathlib import Path

import matplotlib
import pytest
from cli_run import CD, EDM, good, here, write
from matplotlib.figure import Figure
from notebooks import execute, is_clean

NOTEBOOK = Path(__file__).resolve().parents[2] / "analysis" / "models.ipynb"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What every cell shows, as a notebook does it: cells share a namespace."""
    folder = tmp_path_factory.mktemp("notebook")
    write(folder / "teacher.yaml", EDM)
    file = write(folder / "quickstart.yaml", CD, teacher={"experiment": "teacher.yaml"})
    storage = folder / "storage"
    trial = good(here("train", file, "--storage", storage, "--tracking-uri", "none", "--json")).json["trial"]
    good(here("evaluate", trial, "--storage", storage, "--num-samples", 64, "--nfe", 1))
    good(here("search", trial, "--storage", storage, "--num-samples", 64))
    patch = pytest.MonkeyPatch()
    patch.setenv("CMRAY_STORAGE", str(storage))
    patch.chdir(folder)
    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    try:
        values = execute(NOTEBOOK)
    finally:
        patch.undo()
        matplotlib.use(backend)
    return values, trial


@pytest.mark.slow
def test_every_cell_shows_what_it_is_about(shown):
    values, trial = shown
    assert values["open"].name == trial
    assert values["same"] is True
    assert values["searched"][2].times[0] == 80
    assert values["errors"][0.002] == pytest.approx(0.002, rel=0.1), "the identity at sigma_min: the noise is left"
    assert values["errors"][0.1] < values["errors"][10.0]
    assert len(values["agree"]) == 2
    for cell, count in (("one", 16), ("two", 16), ("denoise", 32), ("teacher", 24)):
        figure = values[cell]
        assert isinstance(figure, Figure)
        assert sum(bool(axis.images) for axis in figure.axes) == count
        figure.canvas.draw()


def test_it_is_kept_without_outputs():
    assert is_clean(NOTEBOOK)
