"""ImageNet from its downsampled batches and from folders of photos."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image
from source_checks import (
    check_contract,
    complaint,
    everything,
    labels_of,
    opened,
    pixels_of,
)

from cmray.core.errors import CmrayError
from cmray.datasets import datasets, imagenet64
from cmray.datasets.source import Bad
from cmray.datasets.whole import load_whole

RNG = np.random.default_rng(0)

COUNTS = [3, 1, 2, 2, 1, 3, 1, 1, 2, 1]


def write_batches(folder, size=64, save=np.savez, counts=COUNTS, **changes):
    """Ten train batches and one val batch; changes apply to train_data_batch_2."""
    total = sum(counts)
    rng = np.random.default_rng(size)
    images = rng.integers(0, 256, (total, 3, size, size), dtype=np.uint8)
    labels = rng.permutation(1000)[:total] + 1
    labels[:2] = 1, 1000
    mean = images.mean(0).ravel()
    folder.mkdir(exist_ok=True)
    stop = 0
    for i, count in enumerate(counts):
        start, stop = stop, stop + count
        arrays = {"data": images[start:stop].reshape(count, -1), "labels": labels[start:stop], "mean": mean}
        arrays = {k: v for k, v in {**arrays, **(changes if i == 1 else {})}.items() if v is not None}
        save(folder / f"train_data_batch_{i + 1}.npz", **arrays)
    save(folder / "val_data.npz", data=images[:2].reshape(2, -1), labels=labels[:2])
    return images, labels


@pytest.mark.parametrize("size", [64, 32, 16])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_imagenet_batches_come_through(tmp_path, size, save):
    images, labels = write_batches(tmp_path, size, save)
    source = opened("imagenet64", source=tmp_path)
    assert (source.name, source.split, len(source), len(source.classes)) == (f"imagenet{size}", "train", 17, 1000)
    assert (source.classes[0], source.classes[999]) == ("0", "999")
    assert np.array_equal(pixels_of(source), images)
    assert labels_of(source) == (labels - 1).tolist()
    assert labels_of(source)[:2] == [0, 999], "the batches count from 1"
    assert len(pickle.dumps(source)) < 20_000
    check_contract(source)
    val = opened("imagenet64", source=tmp_path / "val_data.npz", split="val")
    assert np.array_equal(pixels_of(val), images[:2])


def test_one_batch_is_in_memory_at_a_time(tmp_path):
    write_batches(tmp_path)
    source = opened("imagenet64", source=tmp_path)
    for item in source.read(0, len(source)):
        assert item.data.base is None or item.data.base.size == item.data.size, "an image keeps no batch alive"
        assert len(imagenet64._latest) == 1
    os.utime(tmp_path / "train_data_batch_10.npz", (1, 1))
    assert everything(source)
    assert len(imagenet64._latest) == 1


def test_wrong_imagenet_batches_are_one_line(tmp_path):
    assert "holds no ImageNet: it can be a folder with train_data_batch_1.npz" in complaint(
        "imagenet64", source=tmp_path
    )
    second = tmp_path / "train_data_batch_2.npz"
    row = np.zeros((1, 12288), np.uint8)
    for changes, says in (
        ({"data": row[:, :12000]}, "data is uint8 [1, 12000]; a batch has uint8 [n, 12288] (64 px) or"),
        ({"data": row.astype(np.float32)}, "data is float32 [1, 12288]"),
        ({"data": row[0]}, "data is uint8 [12288]"),
        ({"data": row[:0], "labels": np.zeros(0, int)}, "data is uint8 [0, 12288]"),
        ({"data": row[:, :3072]}, "holds images of 32 px, but train_data_batch_1.npz of 64 px"),
        ({"labels": np.array([1, 2])}, "labels are int64 [2]; there are 1 images"),
        ({"labels": np.array([1.5])}, "labels are float64 [1]"),
        ({"labels": np.array([None])}, "labels are object"),
        ({"labels": None}, "has no array 'labels'; a batch has data and labels"),
        ({"data": None}, "has no array 'data'"),
    ):
        write_batches(tmp_path, **changes)
        text = complaint("imagenet64", source=tmp_path)
        assert says in text
        assert str(second) in text
    for label in (0, 1001):
        write_batches(tmp_path, labels=np.array([label]))
        bad = everything(opened("imagenet64", source=tmp_path))[3]
        assert bad == Bad(f"{second}: image 0", f"label {label} is out of range 1 to 1000")
    write_batches(tmp_path)
    source = opened("imagenet64", source=tmp_path)
    np.savez(second, data=np.zeros((2, 12288), np.uint8), labels=np.array([1, 2]))
    with pytest.raises(CmrayError, match=r"train_data_batch_2\.npz changed since it was opened"):
        everything(source)
    packed_oddly = bytearray(second.read_bytes())
    packed_oddly[packed_oddly.index(b"PK\x01\x02") + 10] = 99
    for broken in (packed_oddly, b"no archive"):
        second.write_bytes(broken)
        assert f"{second} cannot be read as an .npz archive" in complaint("imagenet64", source=tmp_path)
    second.unlink()
    (tmp_path / "val_data.npz").unlink()
    assert f"{tmp_path} has no train_data_batch_2.npz, which" in complaint("imagenet64", source=tmp_path)
    assert "has no val_data.npz" in complaint("imagenet64", source=tmp_path, split="val")


def test_a_damaged_batch_is_one_line(tmp_path):
    write_batches(tmp_path, save=np.savez_compressed)
    source = opened("imagenet64", source=tmp_path)
    path = tmp_path / "train_data_batch_3.npz"
    content = bytearray(path.read_bytes())
    content[5000:5200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(CmrayError) as error:
        everything(source)
    assert f"{path} cannot be read" in str(error.value)


def test_imagenet_from_folders_of_photos(tmp_path):
    for wnid, count in (("n01440764", 2), ("n01443537", 1)):
        (tmp_path / "train" / wnid).mkdir(parents=True)
        for i in range(count):
            photo = RNG.integers(0, 256, (80, 100, 3), dtype=np.uint8)
            Image.fromarray(photo).save(tmp_path / "train" / wnid / f"{wnid}_{i}.JPEG")
    for folder in (tmp_path, tmp_path / "train"):
        source = opened("imagenet64", source=folder)
        assert (source.name, source.split, source.classes) == ("imagenet64", "train", ("n01440764", "n01443537"))
        assert labels_of(source) == [0, 0, 1]
        check_contract(source)
    assert "has the folder train, but no folder val" in complaint("imagenet64", source=tmp_path, split="val")


def test_smaller_batches_keep_their_size(tmp_path):
    rng = np.random.default_rng(0)
    data, labels = rng.integers(0, 256, (3, 3 * 32 * 32), dtype=np.uint8), np.array([1, 2, 1000])
    np.savez(tmp_path / "val_data.npz", data=data, labels=labels)
    config = datasets.parse({"name": "imagenet64", "source": tmp_path, "split": "val"})
    whole = load_whole(config)
    assert whole.name == "imagenet32"
    assert np.array_equal(whole.images, data.reshape(3, 3, 32, 32))
    assert whole.labels.tolist() == [0, 1, 999]
