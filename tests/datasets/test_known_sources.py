"""Digits, MNIST and archives from the files they come in: what these hold comes through, what is wrong is one line."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from own_names import own
from PIL import Image
from source_checks import (
    check_contract,
    complaint,
    decoded,
    everything,
    labels_of,
    opened,
    pixels_of,
    write_parquet,
)
from source_files import (
    DIGITS,
    LABELS,
    Payload,
    idx,
    write_idx,
)

from cmray.config.data_facts import facts_of
from cmray.config.run import DataConfig
from cmray.core.errors import CmrayError
from cmray.datasets import cifar10, datasets
from cmray.datasets.source import Bad

RNG = np.random.default_rng(0)
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def test_digits_are_whole_and_embedded():
    digits = opened("digits")
    assert (digits.name, digits.split, len(digits), digits.classes) == ("digits", "all", 1797, tuple("0123456789"))
    pixels = pixels_of(digits)
    assert (pixels.shape, pixels.dtype, pixels.min(), pixels.max()) == ((1797, 1, 8, 8), np.uint8, 0, 255)
    assert np.bincount(labels_of(digits)).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    check_contract(digits)
    assert [name for name in own(datasets) if datasets.get(name).embedded] == ["digits"]


@pytest.mark.parametrize("name", [n for n in datasets.names() if datasets.get(n).embedded])
def test_what_needs_no_files_keeps_what_every_source_promises(tmp_path, name):
    source = opened(name)
    check_contract(source)
    facts = facts_of(DataConfig(name=name), tmp_path)
    assert (facts.count, facts.num_classes) == (len(source), len(source.classes))
    assert facts_of(DataConfig(name=name), tmp_path).digest == facts.digest, "two looks find two datasets"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("name", "ninth"), [("mnist", "9"), ("fashion-mnist", "Ankle boot")])
def test_idx_files_come_through(tmp_path, name, ninth, zipped):
    mnist = opened(name, source=write_idx(tmp_path, zipped=zipped))
    assert (mnist.name, mnist.split, len(mnist.classes), mnist.classes[9]) == (name, "train", 10, ninth)
    assert np.array_equal(pixels_of(mnist), DIGITS[:, None])
    assert labels_of(mnist) == LABELS.tolist()
    check_contract(mnist)


def test_the_test_split_is_the_t10k_files(tmp_path):
    write_idx(tmp_path)
    write_idx(tmp_path, DIGITS[:2], LABELS[:2], prefix="t10k")
    for source in (tmp_path, tmp_path / "t10k-images-idx3-ubyte"):
        assert len(opened("mnist", source=source, split="test")) == 2
        assert len(opened("mnist", source=source)) == 5


def test_a_changed_file_is_another_source(tmp_path):
    before = opened("mnist", source=write_idx(tmp_path)).fingerprint()
    assert opened("mnist", source=tmp_path).fingerprint() == before
    os.utime(tmp_path / "train-labels-idx1-ubyte", (1, 1))
    assert opened("mnist", source=tmp_path).fingerprint() != before


def test_wrong_idx_files_are_one_line(tmp_path):
    source = write_idx(tmp_path / "mnist")
    images, labels = source / "train-images-idx3-ubyte", source / "train-labels-idx1-ubyte"
    good = images.read_bytes()
    assert f"source {tmp_path / 'none'} does not exist" in complaint("mnist", source=tmp_path / "none")
    assert "no split 'test' of mnist" in complaint("mnist", source=source, split="test")
    assert "no split 'test' of fashion-mnist" in complaint("fashion-mnist", source=source, split="test")
    for broken, says in (
        (idx(DIGITS, magic=0x0801), "begins with 0x00000801; an IDX file of bytes in 3D has 0x00000803"),
        (b"", "begins with 0x00000000"),
        (b"\x00\x00\x08\x03\x00\x00", "begins with 0x00000803"),
        (good[:-1], "holds 3,919 bytes of values, but its sizes are 5 x 28 x 28"),
        (good + b"\0", "holds 3,921 bytes of values"),
        (idx(DIGITS[:0]), "holds 0 bytes"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12 + good[16:], "4294967295 x 4294967295 x 4294967295"),
        (idx(DIGITS[:4]), "holds 4 images, but train-labels-idx1-ubyte 5 labels"),
        (idx(DIGITS[:, :20]), "images of mnist are 1x28x28, this one is 1x20x28"),
    ):
        images.write_bytes(broken)
        text = complaint("mnist", source=source)
        assert says in text
        assert str(images if "this one" not in says else source) in text
    images.write_bytes(good)
    labels.write_bytes(idx(np.array([3, 1, 4, 1, 10], np.uint8)))
    assert f"{labels}: label 10 of image 4 is out of range; labels are 0 to 9" in complaint("mnist", source=source)
    labels.unlink()
    assert "no train-labels-idx1-ubyte[.gz]" in complaint("mnist", source=source)


@pytest.mark.parametrize("keep", [1, 12, 300])
def test_a_truncated_or_false_gzip_is_one_line(tmp_path, keep):
    source = write_idx(tmp_path, zipped=True)
    path = source / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} cannot be unpacked" in complaint("mnist", source=source)
    path.write_bytes(b"no gzip at all")
    assert f"{path} cannot be unpacked" in complaint("mnist", source=source)


def test_mnist_is_read_from_parquet_too(tmp_path):
    file = tmp_path / "test-00000-of-00001.parquet"
    write_parquet(file, DIGITS, LABELS.tolist())
    mnist = opened("mnist", source=tmp_path, split="test")
    assert (mnist.name, mnist.split) == ("mnist", "test")
    assert np.array_equal(decoded(mnist), DIGITS)
    assert mnist.classes == tuple("0123456789"), "also where the highest label is not there"
    check_contract(mnist)
    assert "no Parquet files of the split 'train'; it has test" in complaint("mnist", source=tmp_path)
    write_parquet(file, DIGITS, [1, 2, 10, 3, 4])
    wrong = everything(opened("mnist", source=tmp_path, split="test"))[2]
    assert isinstance(wrong, Bad)
    assert f"{file}: row 2" in wrong.where
    assert "label 10 is out of range" in wrong.reason
    write_parquet(file, RNG.integers(0, 256, (4, 6, 7, 3), dtype=np.uint8), [1, 2, 3, 4])
    assert "this one is 3x6x7" in complaint("mnist", source=tmp_path, split="test")


SAMPLES = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(("images", "labels"), [("arr_0", "arr_1"), ("images", "labels")])
@pytest.mark.parametrize("channels", [1, 3])
def test_archives_come_through(tmp_path, images, labels, channels):
    path, given = tmp_path / "samples_5x6x7.npz", SAMPLES[..., :channels]
    np.savez(path, **{images: given})
    source = opened("npz", source=path)
    assert (source.name, source.split, source.classes) == ("samples_5x6x7", "all", ())
    assert np.array_equal(pixels_of(source), given.transpose(0, 3, 1, 2))
    assert set(labels_of(source)) == {None}
    check_contract(source)
    np.savez_compressed(path, **{images: given, labels: np.array([0, 3, 1, 1, 0], np.int32)})
    source = opened("npz", source=path)
    assert source.classes == ("0", "1", "2", "3")
    assert labels_of(source) == [0, 3, 1, 1, 0]
    check_contract(source)


def test_wrong_archives_are_one_line(tmp_path):
    path = tmp_path / "x.npz"
    for arrays, says in (
        ({"arr_0": SAMPLES, "extra": SAMPLES}, "holds arr_0, extra; exactly arr_0 (and arr_1) or images (and labels)"),
        ({"arr_1": SAMPLES}, "holds arr_1; exactly"),
        ({}, "holds nothing; exactly"),
        ({"arr_0": SAMPLES, "labels": np.arange(5)}, "holds arr_0, labels; exactly"),
        ({"arr_0": SAMPLES.astype(np.float32)}, "arr_0 is float32 [5, 6, 7, 3]; images are uint8 [N, H, W, C]"),
        ({"arr_0": SAMPLES.transpose(0, 3, 1, 2)}, "arr_0 is uint8 [5, 3, 6, 7]"),
        ({"images": SAMPLES[0]}, "images is uint8 [6, 7, 3]"),
        ({"images": SAMPLES[:0]}, "images is [0, 6, 7, 3], which holds no images"),
        ({"arr_0": SAMPLES, "arr_1": np.arange(4)}, "arr_1 is int64 [4]; labels are integers [5]"),
        ({"arr_0": SAMPLES, "arr_1": np.eye(5)}, "arr_1 is float64 [5, 5]"),
        ({"arr_0": SAMPLES, "arr_1": np.array([0, 1, -1, 0, 0])}, "label -1 of image 2 is out of range"),
        ({"arr_0": SAMPLES, "arr_1": np.array([0, 1, 10**6, 0, 0])}, "label 1000000 of image 2 is out of range"),
        ({"arr_0": np.array([None])}, "cannot be read as an .npz archive: Object arrays"),
    ):
        np.savez(path, **arrays)
        text = complaint("npz", source=path)
        assert says in text
        assert str(path) in text
    np.savez(path, arr_0=SAMPLES)
    content = path.read_bytes()
    packed_oddly = bytearray(content)
    packed_oddly[content.index(b"PK\x01\x02") + 10] = 99
    for broken in (
        packed_oddly,
        content[:-200],
        content[:20],
        b"",
        b"no archive",
        pickle.dumps(Payload(os.system, "false")),
    ):
        path.write_bytes(broken)
        assert f"{path} cannot be read as an .npz archive" in complaint("npz", source=path)
    assert "cannot be read" in complaint("npz", source=tmp_path)
    np.save(tmp_path / "y.npy", SAMPLES)
    assert "is a single array" in complaint("npz", source=tmp_path / "y.npy")


@pytest.mark.skipif(
    not (SHARED / "cifar10-jpeg").is_dir(), reason="the recompressed CIFAR-10 is not beside the project"
)
def test_real_cifar10_in_parquet():
    source = opened("cifar10", source=SHARED / "cifar10-jpeg", split="test")
    assert (len(source), source.classes) == (10_000, cifar10.CLASSES)
    items = list(source.read(4990, 5010))
    assert all(Image.open(io.BytesIO(item.data)).size == (32, 32) for item in items)
    assert np.bincount(labels_of(source)).tolist() == [1000] * 10
    assert len(opened("cifar10", source=SHARED / "cifar10-jpeg")) == 50_000
    assert len(pickle.dumps(source)) < 20_000


@pytest.mark.skipif(not (SHARED / "mnist-10k").is_dir(), reason="the test digits of MNIST are not beside the project")
def test_real_mnist_in_parquet():
    source = opened("mnist", source=SHARED / "mnist-10k", split="test")
    assert len(source) == 10_000
    assert np.bincount(labels_of(source)).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert "no Parquet files of the split 'train'" in complaint("mnist", source=SHARED / "mnist-10k")


@pytest.mark.parametrize("name", ["folder", "imagenet64", "lsun", "npz", "parquet"])
def test_what_cannot_prepare_itself_says_how_it_is_prepared(tmp_path, name):
    assert f"`cmray data prepare {name} --source PATH --out DIR`" in complaint(name)


@pytest.mark.parametrize("name", [n for n in own(datasets) if not datasets.get(n).embedded])
def test_a_run_names_only_what_comes_with_cmray(tmp_path, name):
    """Anything else would be downloaded, or looked for, while a sweep is planned."""
    with pytest.raises(CmrayError, match=f"does not come with cmray: `cmray data prepare {name} --source PATH"):
        facts_of(DataConfig(name=name), tmp_path)
