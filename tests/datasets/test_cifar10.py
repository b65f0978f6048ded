"""CIFAR-10 in every form it is passed around in; pickles that would run something are refused."""

import functools
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from source_checks import (
    check_contract,
    complaint,
    decoded,
    labels_of,
    opened,
    pixels_of,
    unpacked,
    write_parquet,
)
from source_files import (
    CIFAR,
    CIFAR_LABELS,
    Payload,
    binary_batches,
    original_pickle,
    python_batch,
    python_batches,
    tarball,
)

from cmray.datasets import cifar10


def check_cifar(source, first=0, last=10):
    assert (source.name, source.classes) == ("cifar10", cifar10.CLASSES)
    assert np.array_equal(pixels_of(source), CIFAR[first:last])
    assert labels_of(source) == CIFAR_LABELS[first:last].tolist()
    check_contract(source)


def test_the_hand_made_pickle_is_one():
    assert np.array_equal(pickle.loads(python_batch("data_batch_1"), encoding="bytes")[b"data"][0], CIFAR[0].ravel())


@pytest.mark.parametrize(
    "write",
    [original_pickle, functools.partial(pickle.dumps, protocol=2), functools.partial(pickle.dumps, protocol=4)],
    ids=["python 2", "python 3", "protocol 4"],
)
def test_python_batches_come_through(tmp_path, write):
    unpacked(tmp_path, python_batches(write))
    for source in (tmp_path, tmp_path / "cifar-10-batches-py", tmp_path / "cifar-10-batches-py" / "data_batch_1"):
        check_cifar(opened("cifar10", source=source))
        check_cifar(opened("cifar10", source=source, split="test"), 10, 12)


def test_an_array_in_columns_is_read_in_its_order(tmp_path):
    data = np.asfortranarray(CIFAR[:2].reshape(2, -1))
    assert pickle.dumps(data, 2) != pickle.dumps(np.ascontiguousarray(data), 2)
    folder = unpacked(tmp_path, python_batches()) / "cifar-10-batches-py"
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": data, "labels": CIFAR_LABELS[:2].tolist()}, 2))
    check_cifar(opened("cifar10", source=folder))


def test_binary_batches_come_through(tmp_path):
    unpacked(tmp_path, binary_batches())
    for source in (tmp_path, tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-10-batches-bin" / "test_batch.bin"):
        check_cifar(opened("cifar10", source=source))
        check_cifar(opened("cifar10", source=source, split="test"), 10, 12)


@pytest.mark.parametrize(
    ("name", "files", "mode"),
    [
        ("cifar-10-python.tar.gz", python_batches, "w:gz"),
        ("cifar-10-binary.tar.gz", binary_batches, "w:gz"),
        ("mine.tar", python_batches, "w"),
    ],
)
def test_tarballs_come_through(tmp_path, name, files, mode):
    path = tarball(tmp_path / name, files(), mode)
    for source in (path, tmp_path) if name.startswith("cifar") else (path,):
        check_cifar(opened("cifar10", source=source))
        check_cifar(opened("cifar10", source=source, split="test"), 10, 12)
    assert [p.name for p in tmp_path.iterdir()] == [name], "nothing is unpacked to disk"


def test_cifar10_from_parquet_and_from_folders(tmp_path):
    images = CIFAR.transpose(0, 2, 3, 1)
    write_parquet(tmp_path / "hf" / "train-00000-of-00001.parquet", images, CIFAR_LABELS.tolist())
    found = opened("cifar10", source=tmp_path / "hf")
    assert (found.name, found.split, found.classes) == ("cifar10", "train", cifar10.CLASSES)
    assert np.array_equal(decoded(found), images)
    assert labels_of(found) == CIFAR_LABELS.tolist()
    check_contract(found)
    for i, (image, label) in enumerate(zip(images, CIFAR_LABELS.tolist(), strict=True)):
        folder = tmp_path / "png" / "test" / cifar10.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:04d}.png")
    for source in (tmp_path / "png", tmp_path / "png" / "test"):
        found = opened("cifar10", source=source, split="test")
        order = sorted(range(12), key=lambda i: (CIFAR_LABELS[i], i))
        assert (found.name, found.split, found.classes) == ("cifar10", "test", cifar10.CLASSES)
        assert np.array_equal(decoded(found), images[order])
        assert labels_of(found) == CIFAR_LABELS[order].tolist()
        check_contract(found)
    assert "has the folder test, but no folder train" in complaint("cifar10", source=tmp_path / "png")
    (tmp_path / "png" / "test" / "truck").rename(tmp_path / "png" / "test" / "lorry")
    text = complaint("cifar10", source=tmp_path / "png", split="test")
    assert "lorry" in text
    assert "those of cifar10 are airplane, automobile, bird" in text


def test_wrong_cifar10_files_are_one_line(tmp_path):
    assert "holds no CIFAR-10: it can be cifar-10-batches-py or" in complaint("cifar10", source=tmp_path)
    folder = unpacked(tmp_path, python_batches()) / "cifar-10-batches-py"
    batch = folder / "data_batch_2"
    data = CIFAR[:2].reshape(2, -1)
    good = python_batch("data_batch_2")
    for broken, says in (
        (
            python_batch("data_batch_2", labels=[1, 10]),
            f"{batch}: label 10 of image 1 is out of range; labels are 0 to 9",
        ),
        (python_batch("data_batch_2", labels=[-1, 1]), f"{batch}: label -1 of image 0 is out of range"),
        (python_batch("data_batch_2", labels=[1]), f"{batch} holds 2 images, but 1 labels"),
        (python_batch("data_batch_2", labels=[1, b"cat"]), f"{batch}: labels are list"),
        (python_batch("data_batch_2", data=data[:, :3000]), f"{batch}: data is uint8 [2, 3000]"),
        (python_batch("data_batch_2", data=b"abc"), f"{batch}: data is bytes; a batch of CIFAR-10 has uint8 [n, 3072]"),
        (python_batch("data_batch_2", pickle.dumps, data=data.astype(float)), f"{batch} "),
        (good[:-100], f"{batch} cannot be read as a pickle"),
        (b"", f"{batch} cannot be read as a pickle"),
        (pickle.dumps([1, 2]), f"{batch} holds a list, not a dict"),
    ):
        batch.write_bytes(broken)
        assert says in complaint("cifar10", source=tmp_path)
        assert len(opened("cifar10", source=tmp_path, split="test")) == 2
    batch.unlink()
    (folder / "data_batch_5").unlink()
    assert f"{folder} has no data_batch_2, data_batch_5, which the split 'train'" in complaint("cifar10", source=folder)
    (folder / "test_batch").unlink()
    assert f"{folder} has no test_batch" in complaint("cifar10", source=folder, split="test")


def test_wrong_binary_batches_and_tarballs_are_one_line(tmp_path):
    folder = unpacked(tmp_path / "bin", binary_batches()) / "cifar-10-batches-bin"
    batch = folder / "data_batch_1.bin"
    content = batch.read_bytes()
    batch.write_bytes(content[:-1])
    assert f"{batch} holds 6,145 bytes; a binary batch has 3,073 for each image" in complaint("cifar10", source=folder)
    batch.write_bytes(b"\x0a" + content[1:])
    assert f"{batch}: label 10 of image 0 is out of range" in complaint("cifar10", source=folder)
    batch.unlink()
    assert f"{folder} has no data_batch_1.bin" in complaint("cifar10", source=folder)
    files = python_batches()
    del files["cifar-10-batches-py/data_batch_3"]
    path = tarball(tmp_path / "x.tar.gz", files)
    assert f"{path} has no data_batch_3" in complaint("cifar10", source=path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no tarball", b""):
        path.write_bytes(content)
        assert f"{path} cannot be read as a tarball" in complaint("cifar10", source=path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["alone", "data", "labels"])
def test_a_pickle_that_would_run_something_is_refused(tmp_path, protocol, place):
    marker = tmp_path / "ran"
    folder = unpacked(tmp_path, python_batches()) / "cifar-10-batches-py"
    for function, arguments, name in (
        (os.system, (f"touch {marker}",), "posix.system"),
        (eval, (f"open({str(marker)!r}, 'w')",), "eval"),
        (np.load, (str(marker),), "numpy.load"),
        (getattr, ("abc", "upper"), "getattr"),
    ):
        payload = Payload(function, *arguments)
        wicked = payload if place == "alone" else {b"data": CIFAR[:2].reshape(2, -1), b"labels": [0, 1], place: payload}
        (folder / "data_batch_4").write_bytes(pickle.dumps(wicked, protocol))
        text = complaint("cifar10", source=folder)
        assert f"{folder / 'data_batch_4'} is a pickle that asks for" in text
        assert name in text
        assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(os.system, f"touch {marker}"), protocol))
    assert marker.exists(), "the payload works where it is not refused"


def test_stand_ins_cannot_be_misused(tmp_path):
    """Pickles of allowed names with arguments that no array has."""
    folder = unpacked(tmp_path, python_batches()) / "cifar-10-batches-py"
    for wicked in (
        b"c_codecs\nencode\n(Vabc\nVzip\ntR.",
        b"cnum\x1bpy\x1c\nload\x85\n.",
        b"cnumpy\ndtype\n(VO\ntR.",
        b"cnumpy\nndarray\n(K\x05tR.",
        b"}(Vdata\ncnumpy.core.multiarray\n_reconstruct\n(tR(K\x01K\x02tbu.",
        b"}(Vdata\ncnumpy.core.multiarray\n_reconstruct\n(tRu.",
    ):
        (folder / "data_batch_1").write_bytes(wicked)
        assert str(folder / "data_batch_1") in complaint("cifar10", source=folder)
