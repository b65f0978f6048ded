"""Edit and Interpolate without a page."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from test_studio_canvas import layer
from test_studio_samples import cells

from cmray.core.errors import CmrayError
from cmray.studio import edits
from cmray.studio.edits import Sources, options_of
from cmray.studio.ways import Ways, large, strip

HOLE = layer(top=96, bottom=288, left=96, right=192)  # rows 2 to 5, columns 2 and 3


def test_inpainting_keeps_what_is_not_painted_over(shelf, models):
    source = Sources(shelf).dataset(models.student, 11)
    image, options = options_of("inpaint", source, HOLE, "", None)
    answer = edits.edit(shelf, models.student, "inpaint", image, options, num=3, seed=4)
    shown = cells(answer.picture, 1, 5)[0]
    np.testing.assert_array_equal(shown[0], source[0])
    hole = np.zeros((8, 8), np.bool_)
    hole[2:6, 2:4] = True
    for result in shown[2:]:
        np.testing.assert_array_equal(result[~hole], source[0][~hole])
        assert (result[hole] != source[0][hole]).any()
    assert (shown[2] != shown[3]).any()
    assert "the known part is kept to the bit" in answer.text
    assert "inpaint with 3 results in " in answer.text


def test_the_same_as_the_model_gives_in_python(shelf, models):
    source = Sources(shelf).dataset(models.student, 3)
    image, options = options_of("stroke", source, HOLE, "2.5", None)
    answer = edits.edit(shelf, models.student, "stroke", image, options, num=2, seed=9)
    with shelf.using(models.student) as model:
        wanted = model.edit("stroke", image[None], level=2.5, num=2, seed=9, uint8=True)[0, :, 0].numpy()
    shown = cells(answer.picture, 1, 3)[0]
    np.testing.assert_array_equal(shown[0], image[0])
    np.testing.assert_array_equal(shown[1:], wanted)
    assert (image != source).any()


def test_superres_and_denoise_need_no_drawing(shelf, models):
    source = Sources(shelf).dataset(models.student, 3)
    image, options = options_of("superres", source, None, "", 2)
    answer = edits.edit(shelf, models.student, "superres", image, options, num=1)
    _, seen, made = cells(answer.picture, 1, 3)[0].astype(float)
    means = [x.reshape(4, 2, 4, 2).mean((1, 3)) for x in (source[0].astype(float), seen, made)]
    assert np.abs(means[1] - means[0]).max() <= 0.5
    assert np.abs(means[2] - means[0]).max() <= 0.5
    image, options = options_of("denoise", source, None, "0.5, 5", None)
    answer = edits.edit(shelf, models.student, "denoise", image, options, num=2)
    assert cells(answer.picture, 4, 3).shape[:2] == (4, 3)
    assert "σ 5, 0.5" in answer.text


def test_tasks_that_suit_a_model(shelf, models):
    assert edits.tasks_of(shelf.entry(models.student)) == ["inpaint", "stroke", "superres", "denoise"]
    assert edits.factors_of(shelf.entry(models.student)) == [2, 4]


def test_images_to_edit(shelf, models, tmp_path):
    from cmray.datasets import datasets
    from cmray.datasets.whole import load_whole

    sources = Sources(shelf)
    digits = load_whole(datasets.parse("digits")).images
    assert sources.count(models.student) == len(digits)
    np.testing.assert_array_equal(sources.dataset(models.student, 17), digits[17])
    file = tmp_path / "photo.png"
    Image.fromarray(np.full((40, 60, 3), (255, 0, 0), np.uint8)).save(file)
    assert (sources.file(models.student, str(file)) == 76).all()
    assert sources.file(models.student, str(file)).shape == (1, 8, 8)
    with shelf.using(models.student) as model:
        np.testing.assert_array_equal(
            sources.sampled(models.student, 5), model.sample(1, seed=5, uint8=True, block=1)[0]
        )
    assert (sources.empty(models.student, 255) == 255).all()


def test_images_that_are_not_there(shelf, models, tmp_path):
    sources = Sources(shelf)
    with pytest.raises(CmrayError, match=r"has 0 to 1796"):
        sources.dataset(models.student, 1797)
    with pytest.raises(CmrayError, match="there is no file yet"):
        sources.file(models.student, None)
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(CmrayError, match=r"notes\.png") as error:
        sources.file(models.student, str(tmp_path / "notes.png"))
    assert str(tmp_path) not in str(error.value), "where an upload lies is nobody's business"


@pytest.mark.parametrize(
    ("task", "drawn", "level", "words"),
    [
        ("inpaint", None, "", "there is no mask yet"),
        ("inpaint", layer(top=0, bottom=384, left=0, right=384), "", "covers everything"),
        ("stroke", None, "", "nothing is painted yet"),
        ("stroke", HOLE, "a", "'a'"),
        ("stroke", HOLE, "2, 1", "begins at one noise level"),
        ("stroke", HOLE, "100", "at most sigma_max 80"),
        ("denoise", None, "0.0001", "above sigma_min"),
        ("denoise", None, "-1", "greater than 0"),
    ],
)
def test_bad_values_end_in_one_sentence(shelf, models, task, drawn, level, words):
    source = Sources(shelf).empty(models.student, 0)

    def call() -> None:
        image, options = options_of(task, source, drawn, level, None)
        edits.edit(shelf, models.student, task, image, options)

    with pytest.raises(CmrayError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_way_begins_and_ends_at_its_seeds_and_is_computed_once(shelf, models):
    ways = Ways(shelf)
    frames, _ = ways.frames(models.student, (3, 8), 9)
    assert frames.shape == (9, 1, 8, 8)
    with shelf.using(models.student) as model:
        ends = [model.sample(1, seed=seed, uint8=True, block=8)[0].numpy() for seed in (3, 8)]
    np.testing.assert_array_equal(frames[0], ends[0])
    np.testing.assert_array_equal(frames[-1], ends[1])
    assert ways.frames(models.student, (3, 8), 9)[0] is frames
    assert (ways.frames(models.student, (3, 9), 9)[0][-1] != frames[-1]).any()
    with pytest.raises(CmrayError, match="number of frames is 1"):
        ways.frames(models.student, (3, 8), 1)
    with pytest.raises(CmrayError, match="not class-conditional"):
        ways.frames(models.student, (3, 8), 9, labels="1")


def test_the_pictures_of_a_way(shelf, models):
    frames, _ = Ways(shelf).frames(models.direct, (0, 1), 33)
    np.testing.assert_array_equal(cells(large(frames[7], "seed"), 1, 1)[0, 0], frames[7, 0])
    shown = cells(strip(frames, 16), 1, 11)[0]
    np.testing.assert_array_equal(shown[0], frames[0, 0])
    np.testing.assert_array_equal(shown[-1], frames[-1, 0])


def test_colours(tmp_path):
    """A model of coloured squares can colorize; its dataset is gone, which is one sentence."""
    from small_run import checkpoint, go, small

    from cmray.datasets import ImageDataset
    from cmray.studio.shelf import Place, open_shelf

    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 256, (64, 3, 1, 1), dtype=np.uint8), 16, 2).repeat(16, 3)
    go(small(), tmp_path, data=ImageDataset("squares", "train", "made", images, np.zeros(64, int), ("a",)))
    place = Place(checkpoint(tmp_path), checkpoint(tmp_path))
    shelf = open_shelf([place], tmp_path, None, lambda words: "")
    (name,) = shelf.names
    assert edits.tasks_of(shelf.entry(name)) == list(edits.TASKS)
    with pytest.raises(CmrayError, match=r"images of digits are 1x8x8, the model's are 3x16x16"):
        Sources(shelf).dataset(name, 0)
    answer = edits.edit(shelf, name, "colorize", images[0], {}, num=2, seed=3)
    assert "the known part is kept to " in answer.text
    with shelf.using(name) as model:
        wanted = model.edit("colorize", images[:1], num=2, seed=3, uint8=True)[0].numpy()
    scale = (answer.picture.height - 24 - 16) // 16
    shown = np.asarray(answer.picture)[12 : 12 + 16 * scale : scale]
    starts = [12 + i * (16 * scale + 4) for i in range(4)]  # input, what the model sees, two results
    cut = [shown[:, x : x + 16 * scale : scale].transpose(2, 0, 1) for x in starts]
    np.testing.assert_array_equal(cut[0], images[0])
    assert (cut[1] == cut[1][:1]).all(), "the model sees gray"
    np.testing.assert_array_equal(np.stack(cut[2:]), wanted)
