"""Peak signal-to-noise ratio of images whose error is known."""

import math

import numpy as np
import pytest

from cmray.metrics.psnr import psnr

IMAGE = np.arange(192, dtype=np.uint8).reshape(3, 8, 8)


@pytest.mark.parametrize("step", [1, 5, 25])
def test_an_error_of_so_many_levels_everywhere(step):
    decibels = 20 * math.log10(255 / step)
    assert psnr(IMAGE + step, IMAGE) == pytest.approx(decibels, rel=1e-12)
    assert psnr(IMAGE, IMAGE + step) == pytest.approx(decibels, rel=1e-12)


def test_black_and_white_are_0_decibels_apart_and_a_quarter_of_the_error_is_6_more():
    black, white = np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), 255, np.uint8)
    assert psnr(black, white) == 0
    half = black.copy()
    half[:, :4, :4] = 255
    assert psnr(black, half) == pytest.approx(10 * math.log10(4), rel=1e-12)


def test_equal_images_have_none():
    assert psnr(IMAGE, IMAGE.copy()) is None
