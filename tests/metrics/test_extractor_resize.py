"""Resizing in batches is that of the libraries image by image."""

import numpy as np
import pytest
import torch
from extractor_files import pixels
from PIL import Image

from cmray.metrics import resize

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 33, 47), (3, 64, 64), (3, 299, 299), (3, 301, 450), (3, 640, 17), (3, 1, 1)]


def one_by_one(images, function):
    return np.stack([function(image.numpy().transpose(1, 2, 0)).transpose(2, 0, 1) for image in images])


@pytest.fixture(params=[1, 2])
def threads(request):
    """torch's own resizing rounds by the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mode", "ours"), [("clean", resize.clean), ("legacy_pytorch", resize.bilinear)])
def test_it_is_the_resizer_of_clean_fid(mode, ours, shape, threads):
    from cleanfid.resize import build_resizer

    images = pixels(3, *shape)
    expected = one_by_one(resize.as_rgb(images), build_resizer(mode))
    found = resize.as_rgb(ours(images, 299)).numpy()
    assert found.dtype == np.float32
    last_bit = 2.0**-15  # of values up to 255
    assert np.abs(found - expected).max() <= last_bit
    if min(shape[1:]) > 20:
        assert (found != expected).mean() < 1e-4, "nearly all values are the same to the bit"


@pytest.mark.parametrize("size", [1, 7, 32, 300])
@pytest.mark.parametrize("side", [5, 32, 299])
def test_weights_of_a_cubic_kernel_keep_constants(size, side):
    np.testing.assert_allclose(resize.bicubic_weights(size, side).sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("side", [32, 64, 299])
def test_a_cubic_kernel_keeps_lines(side):
    inside = slice(side // 4, side - side // 4)  # where no border is near
    centres = (np.arange(side) + 0.5) * 32 / side - 0.5
    np.testing.assert_allclose((resize.bicubic_weights(32, side) @ np.arange(32))[inside], centres[inside], atol=1e-9)


def test_tensorflow_one_reads_pixel_i_times_the_ratio():
    x = torch.arange(13.0).mul(10).view(1, 1, 1, 13).expand(1, 1, 11, 13)
    found = resize.tensorflow(x, 40)[0, 0, 5]
    expected = torch.minimum(torch.arange(40) * 13 / 40, torch.tensor(12.0)) * 10
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 33, 47), (3, 90, 31)])
def test_pillow_is_torchvisions_resize_and_centre_crop_of_a_picture(shape):
    from torchvision import transforms

    steps = transforms.Compose(
        [transforms.Resize(64, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(64)]
    )
    images = pixels(3, *shape)
    expected = one_by_one(resize.as_rgb(images), lambda array: np.asarray(steps(Image.fromarray(array))))
    np.testing.assert_array_equal(resize.as_rgb(resize.pillow(images, 64)).numpy(), expected)


@pytest.mark.parametrize("name", [n for n in resize.RESIZERS if n != "none"])
def test_an_image_does_not_depend_on_its_batch(name, threads):
    images = pixels(9, 3, 23, 31)
    whole = resize.RESIZERS[name](images, 64)
    assert whole.shape == (9, 3, 64, 64)
    for size in (1, 4):
        parts = torch.cat([resize.RESIZERS[name](some, 64) for some in images.split(size)])
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4 if name == "tensorflow" else 0)


def test_none_resizes_nothing():
    images = pixels(2, 3, 8, 8)
    assert torch.equal(resize.none(images, 8), images.float())
    with pytest.raises(ValueError, match="not 9x9"):
        resize.none(images, 9)
