"""LSUN's LMDB folders; without the package lmdb most of this is skipped."""

import hashlib
import io
import sys

import numpy as np
import pytest
from PIL import Image
from source_checks import (
    check_contract,
    complaint,
    everything,
    labels_of,
    opened,
    unpacked,
)

from cmray.core.errors import CmrayError
from cmray.datasets import lsun

RNG = np.random.default_rng(0)


@pytest.fixture
def bedrooms(tmp_path, monkeypatch):
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed (optional, for lsun)")
    monkeypatch.setattr(lsun, "STRIDE", 4)  # the folders of a test are small
    folder = tmp_path / "bedroom_train_lmdb"
    photos = {}
    for i in range(11):
        buffer = io.BytesIO()
        Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(buffer, "WEBP")
        photos[hashlib.sha1(str(i).encode()).hexdigest().encode()] = buffer.getvalue()
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, value in photos.items():
            transaction.put(key, value)
    return folder, dict(sorted(photos.items()))


def test_lsun_comes_through_in_the_order_of_its_keys(bedrooms):
    folder, photos = bedrooms
    source = opened("lsun", source=folder)
    assert (source.name, source.split, source.classes, len(source)) == ("lsun", "train", (), 11)
    assert [item.data for item in everything(source)] == list(photos.values())
    assert set(labels_of(source)) == {None}
    assert everything(source)[3].where == f"{folder}: {list(photos)[3].decode()}"
    assert len(source.keys) == 3, "not every key is kept"
    check_contract(source)


def test_readers_of_lsun_share_the_folder_and_leave_it(bedrooms):
    folder, photos = bedrooms
    source = opened("lsun", source=folder)
    for first, second in zip(source.read(0, 11), source.read(0, 11), strict=True):
        assert first.data == second.data
    assert len(lsun._opened) == 0
    with pytest.raises(CmrayError, match="changed since it was opened: it has no image 11 now"):
        list(source.read(9, 12))
    assert [item.data for item in source.read(10, 11)] == list(photos.values())[10:]


def test_wrong_lsun_folders_are_one_line(bedrooms, tmp_path):
    import lmdb

    folder, _ = bedrooms
    assert f"{tmp_path} is no LMDB folder: it has no data.mdb" in complaint("lsun", source=tmp_path)
    content = (folder / "data.mdb").read_bytes()
    for name, broken, says in (
        ("half", content[: len(content) // 2], "is cut off: it has"),
        ("false", b"no database" * 1000, "cannot be read"),
        ("none", b"", "cannot be read"),
    ):
        file = unpacked(tmp_path, {f"{name}/data.mdb": broken}) / name / "data.mdb"
        assert f"{file} {says}" in complaint("lsun", source=file.parent)
    with lmdb.open(str(tmp_path / "empty")) as environment, environment.begin(write=True):
        pass
    assert "holds no images" in complaint("lsun", source=tmp_path / "empty")


def test_lsun_without_lmdb_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    (tmp_path / "data.mdb").write_bytes(b"")
    assert "`pip install lmdb`" in complaint("lsun", source=tmp_path)
