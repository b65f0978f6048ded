"""Holes, ways and schedules: what is peculiar to a task, and what it refuses."""

import itertools
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cmray.core.errors import CmrayError
from cmray.core.rng import SampleNoise
from cmray.editing import Levels, editing_tasks
from cmray.editing.holes import drawn
from cmray.editing.interpolate import Between, slerp

LEVELS = Levels(0.002, 80.0)


def task_of(name, **options):
    return editing_tasks.parse({"name": name, **options})


def test_slerp_ends_at_its_ends_keeps_lengths_and_moves_evenly():
    a, b = (SampleNoise([seed], (3, 32, 32)).draw() for seed in (1, 2))
    alphas = torch.linspace(0, 1, 11, dtype=torch.float64)
    way = slerp(a.expand(11, -1, -1, -1), b.expand(11, -1, -1, -1), alphas)
    assert torch.equal(way[:1], a)
    assert torch.equal(way[-1:], b)
    lengths = way.flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.lerp(lengths[0], lengths[-1], alphas.float()), rtol=0.01)
    unit = way.flatten(1).double() / way.flatten(1).double().norm(dim=1, keepdim=True)
    angles = (unit[1:] * unit[:-1]).sum(1).clamp(-1, 1).arccos()
    assert torch.allclose(angles, angles.mean().expand(10), rtol=0.01)
    assert torch.allclose(slerp(a, 2 * a, torch.tensor([0.5], dtype=torch.float64)), 1.5 * a)


def test_the_ends_of_a_way_have_the_noise_of_their_seeds_at_every_draw():
    rows = task_of("interpolate", frames=3).rows(0, 2, 4)
    assert [(row.seed, row.seed_to, row.alpha) for row in rows] == [
        (4, 5, 0.0), (4, 5, 0.5), (4, 5, 1.0), (5, 6, 0.0), (5, 6, 0.5), (5, 6, 1.0),
    ]  # fmt: skip
    between, four, five = Between(rows, (1, 2, 2)), SampleNoise([4], (1, 2, 2)), SampleNoise([5], (1, 2, 2))
    for _ in range(3):
        way, a, b = between.draw(), four.draw(), five.draw()
        assert torch.equal(way[0:1], a)
        assert torch.equal(way[2:3], b)
        assert torch.equal(way[3:4], b)


def test_between_two_images_the_images_are_mixed():
    task = task_of("interpolate", frames=3)
    known = task.prepare(torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]))
    assert known.image[:, 0, 0, 0].tolist() == [0.0, 0.5, 1.0]
    (times,) = task.schedules(LEVELS, 32, None, True, 2)
    assert times == [1.0]
    assert task.schedules(LEVELS, 128, None, True, 2) == [[5.38 / 2]]
    assert task.schedules(LEVELS, 32, None, True, 0) == [[80.0]]


def test_stroke_has_the_papers_levels_at_256_pixels():
    (times,) = task_of("stroke").schedules(LEVELS, 256, None, True, 1)
    assert times == pytest.approx([5.38, 2.24])
    (times,) = task_of("stroke", level=1.0).schedules(LEVELS, 256, None, True, 1)
    assert times == pytest.approx([1.0, 2.24 / 5.38])
    (times,) = task_of("stroke", level=1.0).schedules(LEVELS, 256, 6, False, 1)
    assert len(times) == 6
    assert (times[0], times[-1]) == (1.0, 0.002)


def test_other_tasks_walk_down_forty_levels():
    (times,) = task_of("colorize").schedules(LEVELS, 256, None, True, 1)
    assert len(times) == 40
    assert times[0] == 80
    assert 0.002 < times[-1] < 0.01
    assert all(a > b for a, b in itertools.pairwise(times))


def test_the_ladder_stops_where_the_model_does():
    ladder = task_of("denoise").schedules(Levels(0.002, 7.0), 32, None, True, 1)
    assert ladder == [[0.1], [0.25], [0.5], [1.0], [2.0], [5.0]]
    assert task_of("denoise", level=0.3).schedules(LEVELS, 32, None, True, 1) == [[0.3]]


@pytest.mark.parametrize("side", [8, 32, 64])
def test_a_word_is_drawn_as_large_as_fits(side):
    hole = drawn("L", side, side)
    assert hole.dtype == np.bool_
    assert 0.15 < hole.mean() < 0.6
    assert (
        hole[:, : side // 3].mean() > hole[: side // 2, side // 2 :].mean() == 0
    )  # its stem, and nothing above its foot
    assert hole.any(1).all()


def test_a_mask_is_white_where_the_hole_is():
    mask = np.zeros((4, 4), np.uint8)
    mask[0] = 255
    mask[1] = 127
    hole = task_of("inpaint", mask=mask).hole(4, 4)
    assert hole.sum() == 4
    assert hole[0].all()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"box": (0, 0, 9, 2)}, "box 0,0,9,2 (left, top, width, height) does not lie in images of 8 x 8"),
        ({"box": (-1, 0, 2, 2)}, "does not lie in"),
        ({"box": (0, 0, 0, 2)}, "does not lie in"),
        ({"box": (0, 0, 8, 8)}, "box 0,0,8,8 covers everything in images of 8x8"),
        ({"word": " "}, "word ' ' leaves no hole"),
        ({"mask": np.zeros((8, 8), np.bool_)}, "the mask leaves no hole"),
        ({"mask": np.ones((4, 8), np.bool_)}, "the mask is 4x8 pixels (H x W), the images are 8x8"),
    ],
)
def test_holes_that_are_none(options, part):
    with pytest.raises(CmrayError, match=re.escape(part)):
        task_of("inpaint", **options).check((1, 8, 8))


@pytest.mark.parametrize("options", [{}, {"word": "A", "box": (0, 0, 1, 1)}])
def test_inpaint_takes_one_hole(options):
    with pytest.raises(ValidationError, match="takes one of mask, box and word"):
        task_of("inpaint", **options)


def test_what_does_not_suit_a_model():
    with pytest.raises(CmrayError, match="colorize needs a model of images with 3 channels; this one makes 1x8x8"):
        task_of("colorize").check((1, 8, 8))
    with pytest.raises(CmrayError, match="factor 3 does not divide the model's images of 32x32; use 2, 4, 8, 16"):
        task_of("superres", factor=3).check((3, 32, 32))
    with pytest.raises(ValidationError, match="less than or equal to 16"):
        task_of("superres", factor=17)
    with pytest.raises(CmrayError, match="found 3 images"):
        task_of("interpolate").rows(3, 1, 0)
    with pytest.raises(CmrayError, match="one way between two seeds, not 2"):
        task_of("interpolate", between=(1, 2)).rows(0, 2, 0)
