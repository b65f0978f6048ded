"""From a drawing on a large canvas to the pixels of a small image."""

import numpy as np
import pytest

from cmray.core.errors import CmrayError
from cmray.studio import canvas


def layer(size: int = 384, colour: tuple[int, int, int] = (255, 0, 0), **box: int) -> dict:
    """A drawing with one filled box."""
    rgba = np.zeros((size, size, 4), np.uint8)
    if box:
        rgba[box["top"] : box["bottom"], box["left"] : box["right"]] = (*colour, 255)
    return {"layers": [rgba]}


@pytest.mark.parametrize(
    ("shape", "side"), [((1, 8, 8), 384), ((3, 32, 32), 384), ((3, 64, 64), 384), ((3, 28, 28), 364)]
)
def test_pixels_become_squares_and_nothing_else(shape, side):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    large = canvas.enlarged(pixels)
    assert large.shape == (side, side, 3)
    step = side // shape[1]
    for offset in (0, step - 1):
        np.testing.assert_array_equal(
            large[offset::step, offset::step], np.broadcast_to(pixels, (3, *shape[1:])).transpose(1, 2, 0)
        )


def test_a_hole_is_what_the_brush_covers():
    hole = canvas.hole(layer(top=96, bottom=192, left=48, right=144), 8, 8)
    assert hole.sum() == 4
    assert hole[2:4, 1:3].all()


@pytest.mark.parametrize(("covered", "inside"), [(18, False), (20, True)])
def test_a_pixel_is_in_the_hole_from_two_fifths_on(covered, inside):
    drawn = layer(top=0, bottom=48, left=0, right=48 + covered)
    assert canvas.hole(drawn, 8, 8)[0, 1] == inside


@pytest.mark.parametrize("drawn", [None, {}, {"layers": []}, layer()])
def test_nothing_is_drawn(drawn):
    assert not canvas.touched(drawn)
    with pytest.raises(CmrayError, match="there is no mask yet"):
        canvas.hole(drawn, 8, 8)
    with pytest.raises(CmrayError, match="nothing is painted yet"):
        canvas.painting(drawn, np.zeros((1, 8, 8), np.uint8))


def test_a_dot_that_covers_no_pixel():
    with pytest.raises(CmrayError, match="larger brush"):
        canvas.hole(layer(top=0, bottom=10, left=0, right=10), 8, 8)


def test_a_painting_keeps_the_rest_to_the_bit():
    source = np.random.default_rng(1).integers(0, 256, (3, 32, 32), np.uint8)
    painted = canvas.painting(layer(colour=(10, 200, 30), top=12, bottom=24, left=0, right=12), source)
    np.testing.assert_array_equal(painted[:, 1, 0], [10, 200, 30])
    changed = (painted != source).any(0)
    assert changed[1, 0]
    assert changed.sum() == 1


def test_a_half_covered_pixel_is_mixed():
    source = np.zeros((1, 8, 8), np.uint8)
    painted = canvas.painting(layer(colour=(200, 200, 200), top=0, bottom=48, left=0, right=24), source)
    assert painted[0, 0, 0] == 100
    assert painted.sum() == 100


def test_gray_models_see_the_luma_of_colours():
    painted = canvas.painting(
        layer(colour=(255, 0, 0), top=0, bottom=48, left=0, right=48), np.zeros((1, 8, 8), np.uint8)
    )
    assert painted[0, 0, 0] == round(0.299 * 255)


def test_a_canvas_of_another_size_is_averaged_too():
    rgba = np.zeros((100, 100, 4), np.uint8)
    rgba[:50, :50] = 255
    hole = canvas.hole({"layers": [rgba]}, 8, 8)
    assert hole[:4, :4].all()
    assert hole.sum() == 16
