"""Figures and grids exist, have the promised size, and survive whatever is missing."""

import math

import numpy as np
import pytest
from PIL import Image
from report_factory import curve, decay, evaluation, experiment, figure_three, search, teacher, trial

from cmray.report import style
from cmray.report.figures import curve_figure, search_figure
from cmray.report.grids import image_grid


def looks_drawn(path):
    image = np.asarray(Image.open(path).convert("L"))
    assert (image[0] == 255).all(), "something is cut off at the top"
    assert (image[:, -1] == 255).all(), "something is cut off at the right"
    assert (image < 128).sum() > 1000, "the figure is empty"
    return image.shape


def test_figures_of_a_whole_experiment(tmp_path):
    curves = curve_figure(figure_three(), tmp_path)
    assert [path.name for path in curves] == ["curve.png", "curve.svg"]
    height, width = looks_drawn(curves[0])
    assert width > 2 * 3.3 * style.DPI
    assert height > 2 * 2.5 * style.DPI
    assert Image.open(curves[0]).info["dpi"][0] == pytest.approx(style.DPI, rel=1e-3)
    assert "<svg" in curves[1].read_text()[:500]
    looks_drawn(search_figure(figure_three(), tmp_path)[0])
    assert not list(tmp_path.glob(".*")), "a temporary file was left"


def test_the_same_records_give_the_same_files(tmp_path):
    first, second = (curve_figure(figure_three(), tmp_path / name) for name in "ab")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


@pytest.mark.parametrize("panels", [1, 2, 3, 5, 12])
def test_any_number_of_panels(tmp_path, panels):
    trials = [trial(f"t{i}", [f"panel {i}"], events=decay(100, 2 + i)) for i in range(panels)]
    looks_drawn(curve_figure(experiment(teacher(), *trials, x_axis="nimg"), tmp_path)[0])


def test_forty_trials_in_a_panel(tmp_path):
    trials = [trial(f"a long label · variant {i} · lr=0.0{i}", events=decay(100, 2 + i / 3)) for i in range(40)]
    height, _ = looks_drawn(curve_figure(experiment(*trials), tmp_path)[0])
    assert height < 6 * style.DPI


@pytest.mark.parametrize(
    "trials",
    [
        [trial("one point", events=curve(3.0))],
        [trial("flat", events=curve(3.0, 3.0))],
        [trial("diverged", events=curve(3.0, math.nan, math.inf, -1.0, 0.0))],
        [trial("no panel", [], events=curve(3.0, 2.0)), trial("waiting", status="waiting")],
        [trial("failed", status="failed", error="x", events=curve(9.0, 8.0)), trial("b", status="failed", error="x")],
        [trial("$dollar_{ & <tag>", ["$x"], events=curve(3.0, 2.0))],
    ],
)
def test_sparse_curves(tmp_path, trials):
    looks_drawn(curve_figure(experiment(*trials), tmp_path)[0])


def test_nothing_to_draw(tmp_path):
    for record in (experiment(), experiment(teacher()), experiment(trial("a", events=curve(math.nan)))):
        assert curve_figure(record, tmp_path) == []
        assert search_figure(record, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_searches_of_several_rounds_and_sizes(tmp_path):
    three = search(
        (5, 0.3, 9), (11, 6.2, 5), (8, 2.6, 4), (3, 0.1, 5.5), (9, 1.1, 3.7), rounds=[3, 2], times=(80, 2, 1)
    )
    for searches in ([three], [search((4, 0.5, 2.0))], [search((4, 0.5, 2.0), (5, 0.6, math.inf)), three] * 20):
        looks_drawn(search_figure(experiment(trial("a", searches=searches)), tmp_path)[0])


def test_labels_keep_the_end_that_tells_them_apart():
    assert style.shorten("short", 10) == "short"
    text = style.shorten("the same beginning · lr=0.003", 20)
    assert len(text) <= 20
    assert text.endswith("lr=0.003")


def test_teacher_levels_need_the_curves_protocol(tmp_path):
    other = trial("teacher", role="teacher", evaluations=[evaluation(5.0, n=10)])
    students = [trial(f"s{i}", events=curve(3.0, 2.0), evaluations=[evaluation(2.0)]) for i in range(2)]
    with_other = curve_figure(experiment(other, *students), tmp_path / "a")[0]
    without = curve_figure(experiment(*students), tmp_path / "b")[0]
    assert looks_drawn(with_other)[0] == looks_drawn(without)[0]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_grid_pixels_are_repeated_exactly(tmp_path):
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 1, 2, 2) * 20
    path = image_grid(images, tmp_path / "new" / "grid.png", columns=2, scale=5)
    picture = pixels(path)
    assert picture.shape == (12 + 10 + 4 + 10 + 12, 12 + 10 + 4 + 10 + 12, 3)
    for i, (y, x) in enumerate([(12, 12), (12, 26), (26, 12)]):
        expected = images[i, 0].repeat(5, 0).repeat(5, 1)
        assert (picture[y : y + 10, x : x + 10] == expected[..., None]).all()
    assert (picture[12:22, 22:26] == 255).all(), "cells are padded"
    assert (picture[26:36, 26:36] == 255).all(), "the missing fourth image is background"
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_grid_in_colour(tmp_path):
    images = np.zeros((1, 3, 2, 2), np.uint8)
    images[0, 0] = 255
    assert (pixels(image_grid(images, tmp_path / "g.png", columns=4))[12:14, 12:14] == [255, 0, 0]).all()


def test_grid_texts_make_room(tmp_path):
    images = np.zeros((4, 1, 8, 8), np.uint8)
    bare = pixels(image_grid(images, tmp_path / "a.png", columns=2, scale=4))
    full = pixels(
        image_grid(images, tmp_path / "b.png", columns=2, scale=4, captions=["one", "a very long caption", "", "4"],
                   row_labels=["teacher", "σ · †"], title="a title that is wider than the four small images")
    )  # fmt: skip
    assert full.shape[0] > bare.shape[0]
    assert full.shape[1] > bare.shape[1]
    for edge in (full[0], full[-1], full[:, 0], full[:, -1]):
        assert (edge == 255).all()


@pytest.mark.parametrize(
    ("images", "options", "said"),
    [
        (np.zeros((1, 1, 2, 2)), {}, "uint8"),
        (np.zeros((1, 2, 2, 2), np.uint8), {}, "C = 1 or 3"),
        (np.zeros((0, 1, 2, 2), np.uint8), {}, r"\[0, 1, 2, 2\]"),
        (np.zeros((1, 1, 2, 2), np.uint8), {"columns": 0}, "columns is 0"),
        (np.zeros((1, 1, 2, 2), np.uint8), {"captions": []}, "0 captions for 1 images"),
        (np.zeros((3, 1, 2, 2), np.uint8), {"row_labels": ["a"]}, "1 row labels for 2 rows"),
    ],
)
def test_grid_errors_are_sentences(tmp_path, images, options, said):
    with pytest.raises(ValueError, match=said):
        image_grid(images, tmp_path / "g.png", **{"columns": 2, **options})
