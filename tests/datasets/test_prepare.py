"""A preparation ends whole, goes on after an interruption, or leaves one clear line."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmray.core.errors import DataError, StorageError
from cmray.core.locks import LOCK
from cmray.datasets import datasets, prepare
from cmray.datasets.images import ImageRule
from cmray.datasets.location import Location
from cmray.datasets.manifest import MANIFEST, PREPARING, read_manifest
from cmray.datasets.prepare import SKIPPED, Preparation
from cmray.datasets.shards import read_shards
from cmray.datasets.source import ArraySource


def source(count: int = 5_000, shape=(3, 8, 8), classes: int = 3, seed: int = 0) -> ArraySource:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    names = tuple(f"class {i}" for i in range(classes))
    return ArraySource("made", "train", "a test", names, images, rng.integers(0, classes, count) if classes else None)


def rule(**options) -> ImageRule:
    return ImageRule.model_validate(options)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def folder_of_images(place: Path, count: int, side: int = 12, colour: bool = True) -> Path:
    place.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (side, side, 3) if colour else (side, side), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i:03d}.png")
    return place


class Stop(Exception):
    pass


def stop_after(images: int):
    def done(count: int) -> None:
        if count >= images:
            raise Stop

    return done


@pytest.mark.parametrize("at", [1, 1_024, 2_500, 4_999])
def test_an_interrupted_preparation_goes_on_and_ends_with_the_same_bytes(tmp_path, at):
    Preparation(source(), rule(), tmp_path / "whole", 5).run()
    with pytest.raises(Stop):
        Preparation(source(), rule(), tmp_path / "parts", 5).run(done=stop_after(at))
    there = contents(tmp_path / "parts") if (tmp_path / "parts").exists() else {}
    if at >= 1_001:
        with pytest.raises(DataError, match=r"its preparation was cut off.*goes on with it"):
            read_manifest(tmp_path / "parts")
    seen: list[int] = []
    Preparation(source(), rule(), tmp_path / "parts", 5).run(done=seen.append)
    assert seen[0] == len([name for name in there if name.startswith("shard")]) * 1_000, "whole shards are not redone"
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_a_killed_preparation_goes_on(tmp_path):
    """A real process, killed with no chance to tidy up."""
    script = """
import sys, numpy as np
sys.path[:0] = sys.argv[2:]
from test_prepare import rule, source
from cmray.datasets.prepare import Preparation
import time
Preparation(source(), rule(), sys.argv[1], 50).run(done=lambda n: time.sleep(0.02))
"""
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, str(tmp_path / "parts"), str(here), str(here.parent)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "parts").glob("shard-0000[3-9]*"))) < 1:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(StorageError, match=r"parts is in use by process \d+ on .*; wait for it, or give another --out"):
        Preparation(source(), rule(), tmp_path / "parts", 50).run()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "parts" / PREPARING).is_file()
    done = Preparation(source(), rule(), tmp_path / "parts", 50)
    assert len(done.progress.shards) >= 3
    done.run()
    Preparation(source(), rule(), tmp_path / "whole", 50).run()
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"source": source(count=4_999)}, r"source \(its files' names, sizes or dates changed\); remove it"),
        ({"rule": rule(crop="center", size=4)}, r"rule \(.*now "),
        ({"shards": 4}, r"shards \(5, now 4\)"),
    ],
)
def test_an_unfinished_preparation_of_something_else_is_refused(tmp_path, other, says):
    with pytest.raises(Stop):
        Preparation(source(), rule(), tmp_path / "set", 5).run(done=stop_after(3_000))
    before = contents(tmp_path / "set")
    now = {"source": source(), "rule": rule(), "shards": 5, **other}
    with pytest.raises(DataError, match=rf"set holds an unfinished preparation with another {says}"):
        Preparation(now["source"], now["rule"], tmp_path / "set", now["shards"])
    assert contents(tmp_path / "set") == before


def test_a_shard_that_changed_since_is_found_when_going_on(tmp_path):
    with pytest.raises(Stop):
        Preparation(source(), rule(), tmp_path / "set", 5).run(done=stop_after(3_000))
    shard = tmp_path / "set" / "shard-00001.parquet"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DataError, match=r"shard-00001.parquet changed after preparation .* another SHA-256"):
        Preparation(source(), rule(), tmp_path / "set", 5).run()


def test_damaged_notes_of_an_unfinished_preparation(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / PREPARING).write_text('{"request": 3')
    with pytest.raises(DataError, match=rf"{PREPARING} is damaged; remove"):
        Preparation(source(), rule(), tmp_path / "set", 5)


def test_a_finished_dataset_is_never_touched(tmp_path):
    Preparation(source(), rule(), tmp_path / "set", 5).run()
    before = contents(tmp_path / "set")
    with pytest.raises(DataError, match="exists and is not empty"):
        Preparation(source(), rule(), tmp_path / "set", 5)
    assert contents(tmp_path / "set") == before


def test_shards_are_cut_by_size(tmp_path, monkeypatch):
    """Random pixels do not compress: 12 MiB in blocks of 3 MiB are two shards of 6 MiB."""
    assert prepare.SHARD_BYTES == 96 * 2**20
    monkeypatch.setattr(prepare, "SHARD_BYTES", 6 * 2**20)
    images = np.random.default_rng(0).integers(0, 256, (256, 3, 128, 128), dtype=np.uint8)
    data = ArraySource("large", "train", "a test", (), images, None)
    manifest = Preparation(data, rule(encoding="raw"), tmp_path / "set", None).run()
    assert [shard.rows for shard in manifest.shards] == [128, 128]
    assert np.array_equal(read_shards(tmp_path / "set").images, images)


def reusing_one_buffer(make, ranges):
    """A Mapper with a fault: each piece is overwritten when the next one is asked for."""
    for span in ranges:
        piece = make(span)
        yield piece
        piece.images[:] = 0


def test_what_was_written_is_compared_with_what_was_to_be_written(tmp_path):
    with pytest.raises(DataError, match=r"set: the shards do not hold the images that were to be written; remove it"):
        Preparation(source(), rule(), tmp_path / "set", 5).run(reusing_one_buffer)
    assert not (tmp_path / "set" / MANIFEST).exists()


def test_what_a_process_killed_at_its_first_write_left_is_no_content(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    for name in (LOCK, ".shard-99.tmp", f".{PREPARING}.0f", f".{MANIFEST}.1e", f".{SKIPPED}.2d"):
        (place / name).write_text("{")
    manifest = Preparation(source(), rule(), place, 2).run()
    assert sorted(contents(place)) == [MANIFEST, *(shard.file for shard in manifest.shards)]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".hidden").write_text("mine")
    with pytest.raises(DataError, match="exists and is not empty"):
        Preparation(source(), rule(), tmp_path / "other", 2)


def test_the_lock_stays_with_unfinished_shards_and_goes_with_the_rest(tmp_path):
    place, locks = tmp_path / "set", []
    for _ in range(2):
        with pytest.raises(Stop):
            Preparation(source(), rule(), place, 5).run(done=stop_after(3_000))
        locks.append((place / LOCK).stat().st_ino)
    assert locks[0] == locks[1], "another process may hold it"
    Preparation(source(), rule(), place, 5).run()
    assert LOCK not in contents(place)
    with pytest.raises(Stop):
        Preparation(source(), rule(), tmp_path / "gone", 5).run(done=stop_after(1))
    assert not (tmp_path / "gone").exists()


def test_a_preparation_that_fails_before_a_whole_shard_leaves_nothing_in_an_object_store(bucket):
    place = Location(f"{bucket}/set")
    with pytest.raises(Stop):
        Preparation(source(), rule(), place, 5).run(done=stop_after(1))
    assert place.names() == []
    with pytest.raises(Stop):
        Preparation(source(), rule(), place, 5).run(done=stop_after(3_000))
    assert place.names() == [PREPARING, "shard-00000.parquet", "shard-00001.parquet"]


def test_rows_that_wait_for_their_block_keep_their_labels(tmp_path):
    """Pieces end where shards do, blocks do not: part of a piece is written with the next one."""
    numbers = np.arange(3_000, dtype="<u2")
    images = numbers.view(np.uint8).reshape(-1, 1, 1, 2)
    data = ArraySource("numbered", "train", "a test", tuple("abcdefg"), images, np.arange(3_000) % 7)
    manifest = Preparation(data, rule(), tmp_path / "set", 2).run()
    assert [(block.shard, block.rows) for block in manifest.blocks()] == [(0, 1024), (0, 476), (1, 1024), (1, 476)]
    back = read_shards(tmp_path / "set")
    assert np.array_equal(back.images.reshape(-1).view("<u2"), numbers)
    assert np.array_equal(back.labels, numbers % 7)


# ---------------------------------------------------------------- bad images


def with_bad_labels(*rows: int) -> ArraySource:
    made = source(3_000, (1, 2, 2))
    made.labels[list(rows)] = 9
    return made


def test_bad_images_are_counted_over_all_pieces(tmp_path):
    with pytest.raises(DataError, match=r"more than --max-bad 1 images cannot be used; the first is .*image 10: "):
        Preparation(with_bad_labels(10, 2_900), rule(), tmp_path / "set", None, max_bad=1).run()
    manifest = Preparation(with_bad_labels(10, 2_900), rule(), tmp_path / "set", None, max_bad=2).run()
    assert (manifest.count, manifest.skipped) == (2_998, 2)


def test_bad_images_are_counted_over_an_interruption(tmp_path):
    with pytest.raises(Stop):
        Preparation(with_bad_labels(10, 2_900), rule(), tmp_path / "set", 3, max_bad=1).run(done=stop_after(1_500))
    with pytest.raises(DataError, match=r"more than --max-bad 1 images cannot be used; the first is .*image 10: "):
        Preparation(with_bad_labels(10, 2_900), rule(), tmp_path / "set", 3, max_bad=1).run()
    manifest = Preparation(with_bad_labels(10, 2_900), rule(), tmp_path / "set", 3, max_bad=2).run()
    assert (manifest.count, manifest.skipped) == (2_998, 2)
    report = [json.loads(line)["where"] for line in (tmp_path / "set" / SKIPPED).read_text().splitlines()]
    assert report == ["a test: image 10", "a test: image 2900"]


def test_names_of_any_bytes_are_reported(tmp_path):
    files = folder_of_images(tmp_path / os.fsdecode(b"sur\xfe"), 2)
    odd = os.fsdecode(b"\xff.png")
    (files / odd).write_bytes(b"no picture")
    config = datasets.parse({"name": "folder", "source": files})
    manifest = Preparation(config.open(), rule(), tmp_path / "out", None, max_bad=1).run()
    report = json.loads((tmp_path / "out" / SKIPPED).read_bytes().decode("ascii"))
    assert report["where"] == str(files / odd)
    assert (manifest.count, manifest.name) == (2, r"sur\xfe")
    assert read_manifest(tmp_path / "out").source.endswith(r"/sur\xfe")


def test_the_first_bad_image_stops_and_leaves_nothing(tmp_path):
    files = folder_of_images(tmp_path / "in", 20)
    (files / "007.png").write_bytes(b"no picture")
    config = datasets.parse({"name": "folder", "source": files})
    with pytest.raises(
        DataError, match=r"007\.png: .* \(--max-bad N skips up to N such images and lists them\)"
    ) as found:
        Preparation(config.open(), rule(), tmp_path / "out", None).run()
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_bad_images_up_to_the_limit_are_left_out_and_named(tmp_path):
    files = folder_of_images(tmp_path / "in", 20)
    good = [np.asarray(Image.open(files / f"{i:03d}.png")).transpose(2, 0, 1) for i in range(20) if i not in (3, 7, 19)]
    (files / "003.png").write_bytes((files / "003.png").read_bytes()[:60])
    (files / "007.png").write_bytes(b"")
    Image.new("RGB", (5, 9)).save(files / "019.png")
    config = datasets.parse({"name": "folder", "source": files})
    with pytest.raises(DataError, match=r"more than --max-bad 2 images cannot be used; the first is .*003\.png"):
        Preparation(config.open(), rule(), tmp_path / "out", None, max_bad=2).run()
    manifest = Preparation(config.open(), rule(), tmp_path / "out", None, max_bad=3).run()
    assert (manifest.count, manifest.skipped) == (17, 3)
    assert np.array_equal(read_shards(tmp_path / "out").images, np.stack(good))
    report = [json.loads(line) for line in (tmp_path / "out" / SKIPPED).read_text().splitlines()]
    assert [Path(entry["where"]).name for entry in report] == ["003.png", "007.png", "019.png"]
    assert all(entry["reason"] for entry in report)


def test_a_source_without_a_single_good_image(tmp_path):
    files = tmp_path / "in"
    files.mkdir()
    for i in range(3):
        (files / f"{i}.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"none of the 3 images looked at can be used; .*0\.png"):
        Preparation(datasets.parse({"name": "folder", "source": files}).open(), rule(), tmp_path / "out", None, 99)


# ---------------------------------------------------------------- encoded shards


def test_large_images_are_kept_encoded_and_come_back_exactly(tmp_path):
    rng = np.random.default_rng(0)
    files = tmp_path / "in"
    files.mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (300, 260, 3), dtype=np.uint8)).save(files / f"{i}.png")
    config = datasets.parse({"name": "folder", "source": files})
    manifest = Preparation(config.open(), rule(crop="center", size=256), tmp_path / "out", 2).run()
    assert (manifest.encoding, manifest.shape, len(manifest.shards)) == ("png", (3, 256, 256), 2)
    back = read_shards(tmp_path / "out")
    assert back.images.shape == (5, 3, 256, 256)
    raw = Preparation(config.open(), rule(crop="center", size=256, encoding="raw"), tmp_path / "raw", 2).run()
    assert np.array_equal(read_shards(tmp_path / "raw").images, back.images)
    assert (raw.mean, raw.std, raw.channel_std) == (manifest.mean, manifest.std, manifest.channel_std)
    assert raw.digest != manifest.digest, "the digest is of what is stored"


def test_jpeg_files_of_the_right_size_are_kept_byte_for_byte(tmp_path):
    files = tmp_path / "in"
    files.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(files / "a.jpg", quality=80)
    config = datasets.parse({"name": "folder", "source": files})
    Preparation(config.open(), rule(encoding="jpeg"), tmp_path / "out", None).run()
    kept = read_shards(tmp_path / "out").images[0]
    seen = np.asarray(Image.open(io.BytesIO((files / "a.jpg").read_bytes()))).transpose(2, 0, 1)
    assert np.array_equal(kept, seen)


def test_statistics_by_channel(tmp_path):
    images = np.zeros((4, 3, 2, 2), np.uint8)
    images[:, 0], images[:2, 1] = 255, 255
    manifest = Preparation(ArraySource("c", "s", "t", (), images, None), rule(), tmp_path / "out", None).run()
    assert manifest.channel_mean == pytest.approx((1, 0, -1))
    assert manifest.channel_std == pytest.approx((0, 1, 0))
    assert manifest.mean == pytest.approx(0)
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["channel_mean"] == list(manifest.channel_mean)
