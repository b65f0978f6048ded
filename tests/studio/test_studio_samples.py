"""Sample and Compare: the pictures hold the pixels of `TrainedModel.sample`, and bad values end in a sentence."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from cli_run import good, here

from cmray.core.errors import CmrayError
from cmray.studio import samples
from cmray.studio.samples import Wish


def cells(picture, rows: int, columns: int, side: int = 8) -> np.ndarray:
    """The images of a grid, uint8 [rows,columns,side,side], whatever its scale: cells are darker than white paper."""
    gray = np.asarray(picture.convert("L")).astype(int)
    found = []
    scale = next(s for s in range(60, 0, -1) if _fits(gray.shape, rows, columns, side * s))
    left = gray.shape[1] - 12 - columns * (side * scale + 4) + 4  # a margin of 12, 4 between cells
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * (side * scale + 4), 12 + row * (side * scale + 16 + 4)
            cell = gray[y : y + side * scale, x : x + side * scale]
            small = cell[::scale, ::scale]
            np.testing.assert_array_equal(cell, small.repeat(scale, 0).repeat(scale, 1), "pixels are no squares")
            found.append(small)
    return np.array(found, np.uint8).reshape(rows, columns, side, side)


def _fits(size: tuple[int, ...], rows: int, columns: int, cell: int) -> bool:
    return size[0] == rows * (cell + 20) - 4 + 24 and size[1] >= columns * (cell + 4) - 4 + 24


def test_a_grid_holds_the_models_pixels(shelf, models):
    answer = samples.sample(shelf, models.student, Wish(seed=5, count=4))
    with shelf.using(models.student) as model:
        images = model.sample(4, seed=5, uint8=True, block=4).numpy()
    np.testing.assert_array_equal(cells(answer.picture, 1, 4).reshape(4, 8, 8), images[:, 0])
    assert "one-step at σ 80 · 1 network evaluation · ema 0.9 · 4 images in " in answer.text
    with shelf.using(models.student) as model:
        assert f"{sum(p.numel() for p in model.model.net.parameters()):,} parameters" in answer.text


def test_the_same_seed_is_the_same_picture_and_another_is_not(shelf, models):
    first, again, other = (np.asarray(samples.sample(shelf, models.direct, Wish(seed=s)).picture) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_an_image_does_not_depend_on_how_many_there_are(shelf, models):
    few, many = (cells(samples.sample(shelf, models.student, Wish(count=n)).picture, 1, 4) for n in (4, 4))
    np.testing.assert_array_equal(few, many)


@pytest.mark.parametrize("wish", [Wish(seed=7, count=4, steps=3), Wish(seed=7, count=4, source="given", times="80, 1")])
def test_the_command_that_is_shown_gives_the_same_images(shelf, models, tmp_path, monkeypatch, wish):
    answer = samples.sample(shelf, models.student, wish)
    words = shlex.split(answer.text.split("`")[1])
    assert words[0] == "cmray"
    monkeypatch.chdir(tmp_path)
    words[-1] = "samples.npz"
    good(here(*words[1:], "--storage", models.storage))
    made = np.load(tmp_path / "samples.npz")["arr_0"][..., 0].astype(int)
    seen = cells(answer.picture, 1, 4).reshape(4, 8, 8).astype(int)
    assert np.abs(made - seen).max() <= 1  # another block size may round otherwise


def test_labels_are_drawn_by_the_seeds_or_given(shelf, models):
    own, three, five = (
        np.asarray(samples.sample(shelf, models.classes, Wish(labels=text)).picture) for text in ("", "3", "5")
    )
    assert (own != three).any()
    assert (three != five).any()
    answer = samples.sample(shelf, models.classes, Wish(labels="3, 4"))
    assert "--class 3,4" in answer.text


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(source="given", times="1, 80"), "descend"),
        (Wish(source="given", times="90, 1"), "90"),
        (Wish(source="given", times="80, 0.001"), "0.001"),
        (Wish(source="given", times="80, x"), "80, x"),
        (Wish(source="given", times=""), "times are missing"),
        (Wish(source="searched", steps=2), "no times were searched"),
        (Wish(labels="3"), "not class-conditional"),
        (Wish(seed=-1), "the seed is -1"),
        (Wish(count=0), "number of images is 0"),
    ],
)
def test_bad_values_end_in_one_sentence(shelf, models, wish, words):
    with pytest.raises(CmrayError, match=words) as error:
        samples.sample(shelf, models.student, wish)
    assert "\n" not in str(error.value)


def test_a_label_out_of_range(shelf, models):
    with pytest.raises(CmrayError, match="labels are 0 to 9, found"):
        samples.sample(shelf, models.classes, Wish(labels="10"))


def test_a_model_that_is_not_open(shelf):
    with pytest.raises(CmrayError, match="no model 'other/one' is open"):
        samples.sample(shelf, "other/one", Wish())


def test_the_way_there_has_a_column_for_each_level(shelf, models):
    one = samples.way(shelf, models.student, Wish(count=2))
    three = samples.way(shelf, models.student, Wish(count=2, steps=3))
    assert one.height == three.height
    assert three.width - one.width == 2 * (64 + 4)


def test_steps_that_a_model_takes(shelf, models):
    assert samples.steps_of(shelf.entry(models.student)).usual == 1
    teacher = samples.steps_of(shelf.entry(models.teacher))
    assert (teacher.usual, teacher.step) == (35, 2)
    with shelf.using(models.teacher) as model:
        for nfe in (teacher.least, teacher.least + teacher.step, teacher.most):
            assert model.sampler(nfe=nfe).nfe == nfe


def test_models_beside_each_other_see_the_same_noise(shelf, models):
    names = [models.direct, models.student]
    answer = samples.compare(shelf, names, Wish(seed=2, count=5), own=False)
    rows = cells(answer.picture, 2, 5)
    for name, row in zip(names, rows, strict=True):
        with shelf.using(name) as model:
            np.testing.assert_array_equal(row, model.sample(5, seed=2, uint8=True, block=16).numpy()[:, 0])
    assert (rows[0] != rows[1]).any()
    assert answer.text.count("1 network evaluation ·") == 2


def test_each_as_it_is_usually_sampled(shelf, models):
    text = samples.compare(shelf, [models.student, models.teacher], Wish(count=2), own=True).text
    assert "| one-step at σ 80 · 1 network evaluation" in text
    assert "35 network evaluations" in text


def test_comparing_nothing_or_what_one_cannot_do(shelf, models):
    with pytest.raises(CmrayError, match="choose at least one model"):
        samples.compare(shelf, [], Wish(), own=False)
    with pytest.raises(CmrayError, match="nfe 2 is even") as error:
        samples.compare(shelf, [models.student, models.teacher], Wish(count=1, steps=2), own=False)
    assert models.teacher in str(error.value)
    with pytest.raises(CmrayError, match="none of these models is class-conditional"):
        samples.compare(shelf, [models.student], Wish(labels="1"), own=False)


def test_titles_are_labels_that_tell_models_apart(models):
    from cmray.studio.shelf import Place, open_shelf
    from cmray.tracking.places import find_run

    found = [find_run(name, models.storage) for name in (models.student, models.direct, models.teacher)]
    labels = ["same", "same", "other"]
    places = [Place(one.folder, one.checkpoint, label) for one, label in zip(found, labels, strict=True)]
    shelf = open_shelf([*places, places[0]], models.storage, None, lambda words: "")
    assert shelf.choices == [
        (f"same ({models.student})", models.student),
        (f"same ({models.direct})", models.direct),
        ("other", models.teacher),
    ]


def test_searched_times_are_offered_and_taken(models, tmp_path):
    import shutil

    storage = tmp_path / "storage"
    shutil.copytree(models.storage, storage)
    good(here("search", models.student, "--nfe", "2", "--num-samples", "64", "--storage", storage,
              "--tracking-uri", "none"))  # fmt: skip
    shelf = type(models)(storage, models.teacher, models.student, models.direct, models.classes).shelf(models.student)
    ((nfe, times),) = samples.known_times(shelf, models.student).items()
    assert (nfe, len(times), times[0]) == (2, 2, 80)
    found = samples.sample(shelf, models.student, Wish(count=4, steps=2, source="searched"))
    given = samples.sample(shelf, models.student, Wish(count=4, source="given", times=", ".join(map(repr, times))))
    np.testing.assert_array_equal(np.asarray(found.picture), np.asarray(given.picture))
    assert "--times searched" in found.text
    with pytest.raises(CmrayError, match="only of 2"):
        samples.sample(shelf, models.student, Wish(steps=3, source="searched"))
