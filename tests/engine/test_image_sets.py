"""Images that are there already: every way to keep them gives the same pixels and the same numbers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import CPU, digits

from cmray.config.metric import parse_metric
from cmray.core.errors import DataError
from cmray.datasets import ImageDataset
from cmray.datasets.whole import write_shards
from cmray.engine.evaluator import InlinePool
from cmray.engine.images import ImageReader, drawn, find_images
from cmray.engine.references import Against, references_for
from cmray.engine.results import evaluate_images
from cmray.engine.session import one_thread
from cmray.metrics.extractors import extractors
from cmray.metrics.reference import reference_statistics

COUNT = 600


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Folder with the first 600 digits as shards, as files and as an .npz; the pixels."""
    folder = tmp_path_factory.mktemp("images")
    pixels = digits().images[:COUNT]
    write_shards(ImageDataset("some", "all", "made by a test", pixels, None, ()), folder / "shards", 3)
    (folder / "files").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image[0]).save(folder / "files" / f"{i:04}.png")
    np.savez(folder / "x.npz", arr_0=pixels.transpose(0, 2, 3, 1))
    return folder, pixels


@pytest.mark.parametrize("name", ["shards", "files", "x.npz"])
def test_the_same_pixels_however_they_are_kept(kept, tmp_path, name):
    folder, pixels = kept
    images = find_images(str(folder / name), tmp_path, "--images")
    assert (images.count, images.shape) == (COUNT, (1, 8, 8))
    reader = ImageReader(images)
    for first, count in ((0, 1), (0, COUNT), (190, 220), (599, 1)):
        np.testing.assert_array_equal(reader.read(first, count), pixels[first : first + count])
    (found,) = references_for([parse_metric("fd/digits")], Against(images), (1, 8, 8), tmp_path)
    extractor = extractors.parse("digits").build(CPU)
    with one_thread():
        assert found.sha256 == reference_statistics(extractor, pixels).sha256()


def test_a_dataset_that_comes_with_cmray_needs_no_preparing(tmp_path):
    images = find_images("digits", tmp_path, "--images")
    np.testing.assert_array_equal(ImageReader(images).read(5, 3), digits().images[5:8])
    assert not (tmp_path / "datasets").exists()


def test_images_are_measured_as_samples_are(kept, tmp_path):
    folder, _ = kept
    images, data = (find_images(str(w), tmp_path, "--images") for w in (folder / "x.npz", "digits"))
    metrics = [parse_metric(m) for m in ("fd/digits", "precision/digits", "is/digits", "sfid/digits")]
    references = references_for(metrics, Against(data), (1, 8, 8), tmp_path)
    found = evaluate_images(images, metrics, references, tmp_path, InlinePool(CPU))
    fd, precision, score, sfid = found
    assert precision.value == 1, "all of them are images of the reference"
    assert 6 < score.value <= 10, "ten digits, in splits of 60"
    assert 0 < fd.value < 5
    assert fd.low is not None
    assert fd.low < fd.value < fd.high
    assert sfid.low is not None
    p = fd.provenance
    assert (p.n, p.weights, p.weights_sha256, p.sampler, p.nfe) == (COUNT, "images x", images.digest, "", 0)


def test_folders_that_cannot_be_measured_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    for where, said in (
        ("empty", "holds no images"),
        ("nowhere", "nowhere does not exist"),
        ("text.txt", "text.txt is no folder and no .npz file"),
    ):
        with pytest.raises(DataError, match=f"--images: .*{said}") as error:
            find_images(str(tmp_path / where), tmp_path, "--images")
        assert "\n" not in str(error.value)


def test_images_of_several_sizes_are_one_line(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i, size in enumerate((8, 8, 9)):
        Image.fromarray(np.full((size, size), 7 * i, np.uint8)).save(folder / f"{i}.png")
    images = find_images(str(folder), tmp_path, "--images")
    with pytest.raises(DataError, match=r"2\.png: the image is 9x9, but the first one is 8x8$"):
        references_for([parse_metric("fd/digits")], Against(images), (1, 8, 8), tmp_path)


def test_other_files_are_other_images(kept, tmp_path):
    folder, pixels = kept
    files = shutil.copytree(folder / "files", tmp_path / "files")
    before = find_images(str(files), tmp_path, "--images").digest
    assert find_images(str(files), tmp_path, "--images").digest == before
    Image.fromarray(pixels[3][0] // 2).save(files / "0000.png")
    assert find_images(str(files), tmp_path, "--images").digest != before


def test_a_reference_has_the_same_bits_on_any_number_of_threads(tmp_path):
    """`cmray sweep` and `cmray evaluate` must not differ in it."""
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            storage = tmp_path / str(threads)
            images = find_images("digits", storage, "--reference-data")
            (reference,) = references_for([parse_metric("fd/digits")], Against(images), (1, 8, 8), storage)
            found.append(reference.sha256)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["shards", "files", "x.npz"])
def test_fewer_images_are_drawn_from_all_of_them(kept, tmp_path, name):
    folder, pixels = kept
    images = find_images(str(folder / name), tmp_path, "--images")
    some, more = drawn(images, 100), drawn(images, 300)
    assert (some.count, some.total, drawn(images, COUNT)) == (100, COUNT, images)
    assert len({images.digest, some.digest, more.digest}) == 3
    assert str(some) == f"{images.name}, drawn of 600 with seed 0"
    found = ImageReader(some).read(0, 100)
    np.testing.assert_array_equal(np.concatenate([ImageReader(some).read(i, 20) for i in range(0, 100, 20)]), found)
    places = _found_at(pixels, found)
    assert places == sorted(set(places)), "each once, in their order"
    assert min(places) < 60 < 540 < max(places), "not the first ones"
    assert set(places) < set(_found_at(pixels, ImageReader(more).read(0, 300))), "more of them are those and others"
    with pytest.raises(DataError, match="holds 600 images, and 601 are asked for"):
        drawn(images, 601)


def _found_at(pixels, some):
    at = {image.tobytes(): i for i, image in enumerate(pixels)}
    assert len(at) == len(pixels), "two digits are the same: the test cannot tell them apart"
    return [at[image.tobytes()] for image in some]
