"""Datasets on a disk, behind file:// and in object stores, here servers that speak their protocols."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from cli_run import CT, good, here, write
from object_stores import in_gcs, in_s3
from small_run import digits

from cmray.core.errors import DataError
from cmray.datasets.location import Location
from cmray.datasets.manifest import MANIFEST, PREPARING, read_manifest
from cmray.datasets.shards import read_shards


@pytest.fixture(params=["path", "file", "s3", "gs"])
def place(request, tmp_path, monkeypatch) -> Location:
    if request.param == "s3":
        return Location(f"{in_s3(request.getfixturevalue('s3_server'), 'places', monkeypatch)}/sets/one")
    if request.param == "gs":
        return Location(f"{in_gcs(request.getfixturevalue('gcs_server'), 'places', monkeypatch)}/sets/one")
    return Location(tmp_path / "sets" / "one" if request.param == "path" else f"file://{tmp_path}/sets/one")


def test_files_come_back_and_names_are_listed(place, tmp_path):
    assert not place.exists()
    assert (place.names(), place.size("a")) == ([], None)
    place.make()
    place.write("a", b"some bytes")
    # larger than one piece of what is copied; the server behind gs:// cannot give a part of so large a file
    size = 3_000_000 if place.name.startswith("gs") else 20_000_000
    (tmp_path / "b").write_bytes(b"x" * size)
    place.put(tmp_path / "b", "b")
    assert place.exists()
    assert place.is_folder()
    assert place.names() == ["a", "b"]
    assert (place.read("a"), place.size("b")) == (b"some bytes", size)
    assert place.sha256("a") == hashlib.sha256(b"some bytes").hexdigest()
    with place.open("b") as file:
        file.seek(size - 10)
        assert file.read() == b"x" * 10
    place.delete("a")
    place.delete("never there")
    assert place.names() == ["b"]
    assert not (tmp_path / "b").exists(), "put moves"
    there = pickle.loads(pickle.dumps(place))
    assert there == place
    assert there.names() == ["b"]


def test_a_dataset_is_prepared_shown_and_trained_on_in_an_object_store(bucket, tmp_path):
    where = f"{bucket}/data/digits"
    ran = good(here("data", "prepare", "digits", "--out", where, "--shards", 3))
    assert f"verified: {where}" in ran.out
    place = Location(where)
    assert place.names() == [MANIFEST, *(f"shard-0000{i}.parquet" for i in range(3))]
    assert np.array_equal(read_shards(where).images, digits().images)
    assert "all hashes verified" in good(here("data", "info", where, "--verify")).out
    for feed in ("resident", "stream", "mmap"):
        file = write(tmp_path / f"{feed}.yaml", {**CT, "name": feed, "data": {"path": where, "feed": feed}})
        more = ("--storage", tmp_path / "storage", "--tracking-uri", "none", "--json")
        told = good(here("train", file, *more)).json
        assert told["trial"].startswith(f"{feed}/ct-")
    ran = here("data", "prepare", "digits", "--out", where)
    assert ran.code == 2
    assert "exists and is not empty" in ran.err


def test_an_interrupted_preparation_goes_on_in_an_object_store(bucket):
    from cmray.datasets import datasets
    from cmray.datasets.images import ImageRule
    from cmray.datasets.prepare import Preparation

    def stop(done: int) -> None:
        if done > 1_000:
            raise KeyboardInterrupt

    where = f"{bucket}/parts"
    with pytest.raises(KeyboardInterrupt):
        Preparation(datasets.parse("digits").open(), ImageRule(), where, 9).run(done=stop)
    assert Location(where).names() == [PREPARING, *(f"shard-0000{i}.parquet" for i in range(5))]
    with pytest.raises(DataError, match="its preparation was cut off"):
        read_manifest(where)
    Preparation(datasets.parse("digits").open(), ImageRule(), where, 9).run()
    assert np.array_equal(read_shards(where).images, digits().images)


def test_damage_in_an_object_store_is_found(bucket):
    where = f"{bucket}/digits"
    good(here("data", "prepare", "digits", "--out", where, "--shards", 2))
    place = Location(where)
    raw = bytearray(place.read("shard-00001.parquet"))
    raw[1000] ^= 1
    place.write("shard-00001.parquet", bytes(raw))
    ran = here("data", "info", where, "--verify")
    assert ran.code == 2
    assert f"{where}/shard-00001.parquet changed after preparation" in ran.err
    assert len(ran.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("swift://x/y", "swift://x/y cannot be opened: Unrecognized filesystem type"),
        ("s3://no-such-bucket-here/x", "data folder s3://no-such-bucket-here/x does not exist"),
        ("file:///nowhere/at/all", "data folder file:///nowhere/at/all does not exist"),
    ],
)
def test_a_place_that_is_not_there_is_one_line(s3_bucket, where, says):
    ran = here("data", "info", where)
    assert ran.code == 2
    assert says in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_a_place_that_cannot_be_written_is_one_line(s3_bucket):
    ran = here("data", "prepare", "digits", "--out", "s3://no-such-bucket-here/x")
    assert ran.code == 2
    assert "cannot write s3://no-such-bucket-here/x: " in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_paths_and_urls_name_folders():
    assert Location("data/x/").name == "data/x"
    assert Location(Path("data/x")).folder == Path("data/x")
    assert Location("file:///data/x").folder == Path("/data/x")
    assert Location(Location("s3://a/b")).name == "s3://a/b"
