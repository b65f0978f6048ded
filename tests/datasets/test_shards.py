"""Prepared datasets come back as they were, or one line says what is wrong with them."""

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from cmray.core.errors import DataError
from cmray.datasets import ImageDataset, datasets
from cmray.datasets.location import Location
from cmray.datasets.manifest import MANIFEST, read_manifest, verify_shards
from cmray.datasets.shards import collect, iterate, read_shards
from cmray.datasets.verified import verify_once
from cmray.datasets.whole import load_whole, write_shards


def make(count=7, shape=(3, 4, 5), classes=3, seed=0) -> ImageDataset:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = rng.integers(0, classes, count) if classes else None
    return ImageDataset("made", "train", "a test", images, labels, tuple(f"class {i}" for i in range(classes)))


def same(a: ImageDataset, b: ImageDataset) -> bool:
    return (
        np.array_equal(a.images, b.images)
        and (a.labels is None) == (b.labels is None)
        and (a.labels is None or np.array_equal(a.labels, b.labels))
        and (a.name, a.split, a.source, a.classes) == (b.name, b.split, b.source, b.classes)
    )


def complaint(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        read_shards(folder)
    text = str(error.value)
    assert "\n" not in text
    assert folder.name in text, "the message must name the place"
    return text


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 13),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    classes=st.integers(0, 3),
    data=st.data(),
)
def test_a_round_trip_keeps_pixels_labels_and_names(count, channels, height, width, classes, data):
    dataset = make(count, (channels, height, width), classes)
    num_shards = data.draw(st.integers(1, count))
    with tempfile.TemporaryDirectory() as tmp:
        manifest = write_shards(dataset, Path(tmp) / "set", num_shards)
        assert read_manifest(Path(tmp) / "set") == manifest
        back = read_shards(Path(tmp) / "set")
    assert same(dataset, back)
    assert back.images.dtype == np.uint8
    assert (manifest.count, manifest.shape) == (count, (channels, height, width))
    assert len(manifest.shards) == num_shards
    assert sum(shard.rows for shard in manifest.shards) == count
    assert manifest.digest == dataset.digest() == back.digest()


def test_the_digest_does_not_know_the_sharding_but_every_pixel_label_and_class(tmp_path):
    dataset = make(count=6)
    digests = {write_shards(dataset, tmp_path / str(n), n).digest for n in range(1, 7)}
    assert digests == {dataset.digest()}
    pixels, labels = dataset.images.copy(), dataset.labels.copy()
    pixels[3, 2, 1, 4] ^= 1
    labels[5] = (labels[5] + 1) % 3
    others = [
        ImageDataset("made", "train", "a test", pixels, dataset.labels, dataset.classes),
        ImageDataset("made", "train", "a test", dataset.images, labels, dataset.classes),
        ImageDataset("made", "train", "a test", dataset.images, dataset.labels, ("a", "b", "c")),
        ImageDataset("made", "train", "a test", dataset.images[::-1], dataset.labels, dataset.classes),
        ImageDataset("made", "train", "a test", dataset.images.reshape(6, 3, 5, 4), dataset.labels, dataset.classes),
        ImageDataset("made", "train", "a test", dataset.images, None, ()),
    ]
    assert len({dataset.digest(), *(other.digest() for other in others)}) == 7
    renamed = ImageDataset("other", "test", "elsewhere", dataset.images, dataset.labels, dataset.classes)
    assert renamed.digest() == dataset.digest(), "the digest is of the content"


def test_mean_and_std_are_those_of_the_values_in_minus_one_to_one():
    images = make(50, (3, 9, 7)).images
    values = images.astype(np.float64) / 127.5 - 1
    mean, std = ImageDataset("m", "s", "t", images, None).mean_std()
    assert mean == pytest.approx(values.mean(), abs=1e-14)
    assert std == pytest.approx(values.std(), abs=1e-14)
    half = np.zeros((2, 1, 1, 1), np.uint8)
    half[1] = 255
    assert ImageDataset("m", "s", "t", half, None).mean_std() == (0.0, 1.0)


def test_mean_and_std_of_more_values_than_are_counted_at_once():
    images = np.zeros((5, 1, 2048, 4096), np.uint8)  # 40 MiB: several blocks
    images[1:3] = 255
    mean, std = ImageDataset("m", "s", "t", images, None).mean_std()
    assert mean == pytest.approx(-0.2, abs=1e-15)
    assert std == pytest.approx(np.sqrt(0.96), abs=1e-15)


def test_the_digits_are_the_real_ones():
    digits = load_whole(datasets.parse("digits"))
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.max() == 255
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.mean_std()[1] == pytest.approx(0.75, abs=0.01)
    theirs = load_digits()
    assert np.array_equal(digits.images[:, 0], np.rint(theirs.images * (255 / 16)).astype(np.uint8))
    assert np.array_equal(digits.labels, theirs.target)


def test_every_flipped_byte_of_a_shard_is_found(tmp_path):
    manifest = write_shards(make(), tmp_path / "set", 2)
    path = tmp_path / "set" / manifest.shards[1].file
    whole = path.read_bytes()
    for at in [0, *range(7, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        text = complaint(tmp_path / "set")
        assert manifest.shards[1].file in text
        assert "SHA-256" in text
    path.write_bytes(whole)
    read_shards(tmp_path / "set")


def test_a_truncated_and_a_missing_shard_are_named(tmp_path):
    manifest = write_shards(make(), tmp_path / "set", 3)
    path = tmp_path / "set" / manifest.shards[2].file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{manifest.shards[2].file}.*bytes, the manifest says {len(whole)}"):
        verify_shards(tmp_path / "set", manifest, rehash=False)
    assert manifest.shards[2].file in complaint(tmp_path / "set")
    path.unlink()
    assert f"lacks {manifest.shards[2].file}" in complaint(tmp_path / "set")


def test_a_shard_of_another_dataset_with_a_true_hash_is_found_by_the_digest(tmp_path):
    """The manifest's file hashes could be made to fit; the digest of the content still tells."""
    write_shards(make(seed=0), tmp_path / "a", 1)
    other = write_shards(make(seed=1), tmp_path / "b", 1)
    raw = json.loads((tmp_path / "b" / MANIFEST).read_text())
    raw["digest"] = make(seed=0).digest()
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(DataError, match="does not match the manifest's digest"):
        read_shards(tmp_path / "b")
    assert other.digest != raw["digest"]


@pytest.mark.parametrize(
    "index",
    [[0, 1, 2, 3, 4, 5, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 7], [0, 1, 2, 3, 4, 5, -1]],
    ids=["doubled", "missing", "beyond", "negative"],
)
def test_rows_must_be_there_once_each(tmp_path, index):
    dataset = make()
    manifest = write_shards(dataset, tmp_path / "set", 1)
    rows = {"index": np.array(index), "image": dataset.images[: len(index)], "label": dataset.labels[: len(index)]}
    with pytest.raises(DataError, match=r"made: .*(missing or doubled|outside 0 to 6)"):
        collect(manifest, [rows])


def test_rows_may_come_in_any_order_and_as_single_arrays(tmp_path):
    dataset = make()
    manifest = write_shards(dataset, tmp_path / "set", 1)
    order = np.random.default_rng(0).permutation(7)
    batches = []
    for part in np.array_split(order, 3):
        loose = np.empty(len(part), dtype=object)  # what Ray Data makes of tensors it cannot stack
        loose[:] = list(dataset.images[part])
        batches.append({"index": part, "image": loose, "label": dataset.labels[part]})
    assert same(dataset, collect(manifest, batches))


def test_no_folder_no_manifest_and_an_empty_folder(tmp_path):
    assert "does not exist; `cmray data prepare" in complaint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty is empty, so has no manifest" in complaint(tmp_path / "empty").replace(".json", "")
    write_shards(make(), tmp_path / "set", 1)
    (tmp_path / "set" / MANIFEST).unlink()
    assert f"has no {MANIFEST}" in complaint(tmp_path / "set")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"", "damaged"),
        (lambda raw: raw[: len(raw) // 2], "damaged"),
        (lambda raw: b"\xff\xfe" + raw, "damaged"),
        (lambda raw: b"[1, 2]", "format_version"),
        (lambda raw: raw.replace(b'"format_version": 2', b'"format_version": 3'), "of a newer cmray"),
        (lambda raw: raw.replace(b'"format_version": 2', b'"format_version": 1'), "reads version 2: remove"),
        (lambda raw: raw.replace(b'"format_version": 2,', b""), "format_version None"),
        (lambda raw: raw.replace(b'"count": 7', b'"count": "many"'), "damaged"),
        (lambda raw: raw.replace(b'"digest"', b'"dogest"'), "damaged"),
    ],
    ids=["nothing", "half", "no text", "no mapping", "newer", "older", "no version", "wrong type", "missing field"],
)
def test_a_damaged_manifest_is_one_clear_line(tmp_path, damage, words):
    write_shards(make(), tmp_path / "set", 1)
    path = tmp_path / "set" / MANIFEST
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    text = complaint(tmp_path / "set")
    assert words in text
    assert MANIFEST in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"group_rows": 0}, "group_rows: Input should be greater than 0, not 0"),
        ({"group_rows": 512}, "group_rows: it is 512, but blocks of this shape have 1024"),
        ({"count": -1}, "count: Input should be greater than 0, not -1"),
        ({"count": 0}, "count: Input should be greater than 0, not 0"),
        ({"count": 10**13}, "count: it is 10,000,000,000,000, but the shards have 7 rows"),
        ({"skipped": -1}, "skipped: Input should be greater than or equal to 0, not -1"),
        ({"shape": [3, 0, 5]}, "shape.1: Input should be greater than 0, not 0"),
        ({"shape": [3, 4, -5]}, "shape.2: Input should be greater than 0, not -5"),
        ({"shape": [2, 4, 5]}, "shape.0: images have 1 channel or 3, not 2"),
        ({"shape": [3, 10**9, 10**9]}, "shape: 3x1000000000x1000000000 is more than 402,653,184 values an image"),
        ({"encoding": "bmp"}, "encoding: Input should be 'raw', 'png' or 'jpeg', not 'bmp'"),
        ({"name": "../up"}, "name: String should match pattern"),
        ({"std": -0.5}, "std: Input should be greater than or equal to 0, not -0.5"),
        ({"mean": float("nan")}, "mean: Input should be a finite number, not nan"),
        ({"channel_mean": [0.0]}, "channel_mean: it has 1 numbers for 3 channels"),
        ({"digest": "\x1b[31m" * 20}, "digest: String should match pattern"),
        ({"shards": []}, "shards: Tuple should have at least 1 item"),
    ],
)
def test_a_manifest_that_cannot_be_true_is_told_by_its_field(tmp_path, changes, says):
    write_shards(make(), tmp_path / "set", 1)
    path = tmp_path / "set" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    text = complaint(tmp_path / "set")
    assert f"{path} is damaged: {says}" in text
    assert text.isprintable()


@pytest.mark.parametrize(
    ("changes", "count", "says"),
    [
        ({"rows": 0}, 7, "shards.1.rows: Input should be greater than 0, not 0"),
        ({"rows": 10**13}, 10**13 + 4, "shards.1.rows: 10,000,000,000,000 do not fit into "),
        ({"bytes": -1}, 7, "shards.1.bytes: Input should be greater than 0, not -1"),
        ({"file": "../b/shard-00001.parquet"}, 7, "shards.1.file: String should match pattern"),
        ({"file": "shard-00001.parquet\n"}, 7, "shards.1.file: String should match pattern"),
        ({"file": "shard-00000.parquet"}, 7, "shards: the same file is listed twice"),
        ({"sha256": "abc"}, 7, "shards.1.sha256: String should match pattern"),
    ],
)
def test_a_shard_that_cannot_be_true_is_told_by_its_field(tmp_path, changes, count, says):
    write_shards(make(), tmp_path / "set", 2)
    path = tmp_path / "set" / MANIFEST
    raw = json.loads(path.read_text())
    raw["shards"][1].update(changes)
    path.write_text(json.dumps({**raw, "count": count}))
    text = complaint(tmp_path / "set")
    assert f"{path} is damaged: {says}" in text
    assert text.isprintable()


def test_an_occupied_place_is_refused_and_left_alone(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="exists and is not empty"):
        write_shards(make(), place, 1)
    assert [p.name for p in tmp_path.rglob("*")] == ["set", "thesis.txt"]
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(DataError, match="exists and is not empty"):
        write_shards(make(), file, 1)
    with pytest.raises(DataError, match=r"cannot write .*file/below/set: Not a directory"):
        write_shards(make(), file / "below" / "set", 1)
    assert file.read_text() == "x"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    write_shards(make(), tmp_path / "set", 1)
    assert same(make(), read_shards(tmp_path / "set"))


def test_nothing_is_left_when_writing_fails_midway(tmp_path):
    """A label that is no number fails in the second shard, after the first was written."""
    dataset = make(4)
    labels = np.array([0, 1, "x", 2], dtype=object)
    broken = ImageDataset("made", "train", "a test", dataset.images, labels, dataset.classes)
    with pytest.raises(ValueError, match="'x'"):
        write_shards(broken, tmp_path / "set", 4)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on file sizes stands in for the full disk: the kernel refuses the write."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(DataError, match=r"cannot write .*set: ") as error:
            write_shards(make(200, (3, 16, 16)), tmp_path / "set", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_shards", [0, -1, 8])
def test_an_impossible_number_of_shards(tmp_path, num_shards):
    with pytest.raises(DataError, match=rf"--shards is {num_shards}; made has 7 images, so 1 to 7 work"):
        write_shards(make(), tmp_path / "set", num_shards)
    assert list(tmp_path.iterdir()) == []


def test_labels_without_names_and_names_without_labels_are_refused(tmp_path):
    whole = make()
    for labels, classes in ((whole.labels, ()), (None, whole.classes)):
        with pytest.raises(DataError, match="made needs both labels and class names, or neither"):
            write_shards(ImageDataset("made", "s", "t", whole.images, labels, classes), tmp_path / "set", 1)
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_may_not_be_written_are_fine(tmp_path):
    dataset = make()
    dataset.images.flags.writeable = False
    dataset.labels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_shards(dataset, tmp_path / "set", 2)
        assert same(dataset, read_shards(tmp_path / "set"))


def test_a_dataset_is_hashed_once_and_again_when_a_file_changed(tmp_path, monkeypatch):
    manifest = write_shards(make(), tmp_path / "set", 3)
    hashed = []
    whole = Location.sha256
    monkeypatch.setattr(Location, "sha256", lambda self, name: hashed.append(name) or whole(self, name))
    for _ in range(3):
        verify_once(tmp_path / "set", manifest, tmp_path / "notes")
    assert sorted(hashed) == [shard.file for shard in manifest.shards]
    (tmp_path / "notes" / f"{manifest.digest[:32]}.json").write_text("{")
    verify_once(tmp_path / "set", manifest, tmp_path / "notes")
    assert len(hashed) == 6
    shard = tmp_path / "set" / manifest.shards[1].file
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 3] ^= 1
    shard.write_bytes(raw)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"{shard.name} changed after preparation"):
            verify_once(tmp_path / "set", manifest, tmp_path / "notes")
    shard.unlink()
    with pytest.raises(DataError, match=f"lacks {shard.name}"):
        verify_once(tmp_path / "set", manifest, tmp_path / "notes")


def test_a_bit_that_flips_after_verification_is_found_when_it_is_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 16, 16), dtype=np.uint8)
    manifest = write_shards(ImageDataset("noise", "s", "t", images, None), tmp_path / "set", 1)
    path = tmp_path / "set" / manifest.shards[0].file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1  # in the pixels
    path.write_bytes(raw)
    with pytest.raises(DataError, match=rf"{path.name} cannot be read: .*"):
        list(iterate(tmp_path / "set", manifest))


def test_shards_that_changed_places_are_found_as_they_are_read(tmp_path):
    """Their hashes would be made to fit, too; streams and maps do not compare the content's digest first."""
    manifest = write_shards(make(8), tmp_path / "set", 2)
    one, other = manifest.shards
    swapped = manifest.model_copy(update={"shards": (other, one)})
    with pytest.raises(DataError, match=r"shard-00001\.parquet: block 0 begins with image 4, not 0"):
        list(iterate(tmp_path / "set", swapped))
