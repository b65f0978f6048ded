"""Folders and Parquet files of pictures: what they hold comes in order, and what is wrong with them is one line."""

import io
import json
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmray.core.errors import DataError
from cmray.datasets import datasets
from cmray.datasets.images import ImageRule, resolve, to_pixels
from cmray.datasets.parquet import parquet_source
from cmray.datasets.source import Bad, Item

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (4, 6, 7, 3), dtype=np.uint8)  # [N, H, W, C]


def opened(name, **options):
    return datasets.parse({"name": name, **options}).open()


def whole(source):
    found = list(source.read(0, len(source)))
    assert len(found) == len(source)
    return found


def complaint(name, **options):
    with pytest.raises(DataError) as error:
        whole(opened(name, **options))
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


def picture(level=0, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((3, 4), level, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


# ---------------------------------------------------------------- folder


def fill(root, *names):
    for level, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(level % 256))
    return root


def found_in(source):
    return [os.path.relpath(item.where, source.root) for item in whole(source)]


def test_sub_folders_are_classes(tmp_path):
    root = fill(tmp_path / "pets", "dog/2.png", "cat/b.JPG", "dog/1.webp", "cat/more/a.tiff", "emu/z.gif")
    pets = opened("folder", source=root)
    assert (pets.name, pets.split, pets.origin, pets.classes) == ("pets", "all", str(root), ("cat", "dog", "emu"))
    assert found_in(pets) == ["cat/b.JPG", "cat/more/a.tiff", "dog/1.webp", "dog/2.png", "emu/z.gif"]
    assert [item.label for item in whole(pets)] == [0, 0, 1, 1, 2]
    assert [item.data for item in whole(pets)] == [picture(level) for level in (1, 3, 2, 0, 4)]


def test_a_folder_without_classes(tmp_path):
    root = fill(tmp_path, "10.png", "2.jpeg", "nested/deep/1.bmp", "nested/0.tif")
    flat = opened("folder", source=root)
    assert flat.classes == ()
    assert found_in(flat) == ["10.png", "2.jpeg", "nested/0.tif", "nested/deep/1.bmp"]
    assert {item.label for item in whole(flat)} == {None}


def test_auto_needs_two_classes_and_nothing_outside_of_them(tmp_path):
    one = fill(tmp_path / "one", "a/1.png")
    assert opened("folder", source=one).classes == ()
    assert opened("folder", source=one, labels="folders").classes == ("a",)
    two = fill(tmp_path / "two", "a/1.png", "b/1.png")
    (two / "empty").mkdir()
    assert opened("folder", source=two).classes == ("a", "b")
    assert opened("folder", source=two, labels="none").classes == ()
    fill(two, "loose.png")
    assert opened("folder", source=two).classes == ()
    assert f"{two}/loose.png is in no class folder" in complaint("folder", source=two, labels="folders")


def test_only_images_that_are_not_hidden_count(tmp_path):
    root = fill(tmp_path, "a.png", ".b.png", ".git/c.png", "notes.txt", "png", "e.png.part", "f.npz")
    os.mkfifo(root / "pipe.png")
    assert found_in(opened("folder", source=root)) == ["a.png"]


def test_splits_are_chosen(tmp_path):
    root = fill(tmp_path / "set", "train/a/1.png", "train/b/1.png", "train/b/2.png", "val/a/1.png", "val/b/1.png")
    assert f"{root} holds the splits train, val; choose one with --split" in complaint("folder", source=root)
    train = opened("folder", source=root, split="train")
    assert (train.name, train.split, train.origin, len(train)) == ("set", "train", str(root / "train"), 3)
    assert train.classes == opened("folder", source=root, split="val").classes == ("a", "b")
    says = complaint("folder", source=root, split="test")
    assert "no sub-folder of the split 'test'; it has train, val" in says
    fill(root, "other/1.png")
    assert opened("folder", source=root).classes == ("other", "train", "val"), "not all of them are splits"


def test_links_are_followed_and_loops_are_not(tmp_path):
    root = fill(tmp_path / "set", "a/1.png", "b/1.png")
    fill(tmp_path / "elsewhere", "2.png", "more/3.png")
    (root / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "4.png").symlink_to(root / "a" / "1.png")
    (root / "a" / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "itself").symlink_to(root / "b" / "itself")
    found = found_in(opened("folder", source=root))
    assert len(found) == len(set(found))
    for name in ("a/1.png", "b/1.png", "b/4.png", "b/linked/2.png", "b/linked/more/3.png"):
        assert name in found
    assert max(name.count("/") for name in found) < 8


def test_files_that_cannot_be_read_are_bad(tmp_path):
    root = fill(tmp_path, "1.png", "2.png", "4.png")
    (root / "3.png").symlink_to(root / "nowhere.png")
    source = opened("folder", source=root)
    (root / "2.png").unlink()
    found = whole(source)
    assert [type(item) for item in found] == [Item, Bad, Bad, Item]
    assert found[1] == Bad(str(root / "2.png"), "cannot be read: No such file or directory")


def test_a_folder_that_is_none_or_empty(tmp_path):
    assert "does not exist" in complaint("folder", source=tmp_path / "none")
    file = tmp_path / "x.png"
    file.write_bytes(picture())
    assert "x.png is a file; folder reads a folder" in complaint("folder", source=file)
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    assert "empty holds no images (png, jpg" in complaint("folder", source=tmp_path / "empty")
    assert "cmray data prepare folder --source" in complaint("folder")


def test_names_of_any_bytes(tmp_path):
    odd = os.fsdecode(b"caf\xe9 \n.png")
    root = fill(tmp_path, odd, "zß.png")
    assert found_in(pickle.loads(pickle.dumps(opened("folder", source=root)))) == sorted([odd, "zß.png"])


@settings(max_examples=30)
@given(count=st.integers(1, 12), data=st.data())
def test_any_range_of_a_folder_is_a_part_of_it(count, data):
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    with tempfile.TemporaryDirectory() as tmp:
        source = opened("folder", source=fill(Path(tmp), *[f"{i % 3}/{i * 7919}.png" for i in range(count)]))
        sent = pickle.loads(pickle.dumps(source))
        assert list(sent.read(start, stop)) == whole(source)[start:stop]


def test_a_folder_of_many_files_is_cheap_to_send(tmp_path):
    source = opened("folder", source=fill(tmp_path, *[f"class{i % 2}/image-{i:08}.png" for i in range(500)]))
    paths = sum(len(name) + 1 for name in found_in(source))
    assert len(pickle.dumps(source)) < paths + 500 * 16 + 2000


def test_the_fingerprint_of_a_folder_knows_names_sizes_dates_and_labels(tmp_path):
    root = fill(tmp_path / "set", "a/1.png", "b/2.png")
    mark = lambda **options: opened("folder", source=root, **options).fingerprint()
    marks = [mark(), mark(labels="none")]
    os.utime(root / "a/1.png", (1, 1))
    marks.append(mark())
    (root / "a/1.png").write_bytes(b"other")
    os.utime(root / "a/1.png", (1, 1))
    marks.append(mark())
    (root / "a/1.png").rename(root / "a/3.png")
    marks.append(mark())
    assert len(set(marks)) == 5
    assert mark() == marks[-1]


def test_class_names_are_text(tmp_path):
    odd = os.fsdecode(b"caf\xff")
    root = fill(tmp_path, f"{odd}/1.png", "tea/1.png")
    assert complaint("folder", source=root) == rf"{root}: class name 'caf\udcff' is not UTF-8; rename it"
    assert len(opened("folder", source=root, labels="none")) == 2


# ---------------------------------------------------------------- Parquet


def write_parquet(path, images, labels=None, names=None, image="image", label="label", group=2, plain=False):
    content = [i if isinstance(i, bytes | None) else encoded(i) for i in images]
    rows = [{"bytes": data, "path": None} for data in content]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {image: pa.array(content, pa.binary()) if plain else pa.array(rows, kind)}
    if labels is not None:
        columns[label] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    if names is not None:
        features = {label: {"names": names, "_type": "ClassLabel"}, image: {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def pixels_of(source):
    return np.stack([to_pixels(item, ImageRule()) for item in whole(source)])


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label")])
def test_images_of_several_shards_keep_their_order(tmp_path, image, label):
    more = {"image": image, "label": label, "names": ["cat", "dog", "emu"]}
    write_parquet(tmp_path / "photos" / "train-00001-of-00002.parquet", COLOUR[3:], [0], **more)
    write_parquet(tmp_path / "photos" / "train-00000-of-00002.parquet", COLOUR[:3], [2, 1, 2], **more)
    photos = opened("parquet", source=tmp_path / "photos")
    assert (photos.name, photos.split, photos.classes) == ("photos", "train", ("cat", "dog", "emu"))
    assert np.array_equal(pixels_of(photos), COLOUR.transpose(0, 3, 1, 2))
    assert [item.label for item in whole(photos)] == [2, 1, 2, 0]
    assert whole(photos)[3].where == f"{tmp_path}/photos/train-00001-of-00002.parquet: row 0"


def test_plain_bytes_are_read_too(tmp_path):
    plain = opened("parquet", source=write_parquet(tmp_path / "x.parquet", COLOUR, [1, 0, 1, 0], plain=True))
    assert np.array_equal(pixels_of(plain), COLOUR.transpose(0, 3, 1, 2))
    large = pa.table({"image": pa.array([encoded(i) for i in COLOUR], pa.large_binary())})
    pq.write_table(large, tmp_path / "x.parquet")
    assert np.array_equal(pixels_of(opened("parquet", source=tmp_path)), COLOUR.transpose(0, 3, 1, 2))


def test_without_names_classes_are_called_by_number(tmp_path):
    file = write_parquet(tmp_path / "few.parquet", COLOUR, [0, 12, None, -1])
    few = opened("parquet", source=file)
    assert few.classes == tuple(map(str, range(13)))
    assert [type(item) for item in whole(few)] == [Item, Item, Bad, Bad]
    write_parquet(file, COLOUR, [-1] * 4)
    assert "column label holds no label from 0 to 99999" in complaint("parquet", source=file)


def test_labels_are_optional(tmp_path):
    few = opened("parquet", source=write_parquet(tmp_path / "few.parquet", COLOUR))
    assert few.classes == ()
    assert {item.label for item in whole(few)} == {None}
    assert (few.name, few.split) == ("few", "all")


def test_grayscale_among_colours_is_settled_by_the_rule(tmp_path):
    both = opened("parquet", source=write_parquet(tmp_path / "both.parquet", [COLOUR[0, ..., 0], COLOUR[1]]))
    assert resolve(ImageRule(), both).shape == (3, 6, 7)


def test_splits_are_not_mixed(tmp_path):
    for split, n in (("train", 3), ("test", 1)):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", COLOUR[:n])
    assert "holds the splits test, train; choose one with --split" in complaint("parquet", source=tmp_path)
    says = complaint("parquet", source=tmp_path, split="dev")
    assert "no Parquet files of the split 'dev'; it has test, train" in says
    assert len(opened("parquet", source=tmp_path, split="train")) == 3


@pytest.mark.parametrize("name", ["train/0000.parquet", "data/train.parquet"])
def test_splits_are_known_by_folder_and_name_too(tmp_path, name):
    write_parquet(tmp_path / name, COLOUR)
    assert opened("parquet", source=tmp_path).split == "train"


@settings(max_examples=60)
@given(rows=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(sum), group=st.integers(1, 4), data=st.data())
def test_any_range_is_a_part_of_the_whole(rows, group, data):
    total = sum(rows)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    contents = [f"image {i}".encode() for i in range(total)]
    with tempfile.TemporaryDirectory() as tmp:
        at = 0
        for number, count in enumerate(rows):
            part = contents[at : at + count]
            write_parquet(Path(tmp) / f"{number}.parquet", part, list(range(at, at + count)), group=group)
            at += count
        source = opened("parquet", source=Path(tmp))
        assert [item.data for item in whole(source)] == contents
        sent = pickle.loads(pickle.dumps(source))
        assert list(sent.read(start, stop)) == whole(source)[start:stop]
        assert [item.label for item in sent.read(start, stop)] == list(range(start, stop))


def test_a_range_longer_than_a_batch(tmp_path):
    contents = [f"{i}".encode() for i in range(1000)]
    source = opened("parquet", source=write_parquet(tmp_path / "x.parquet", contents, group=300))
    for start, stop in ((0, 1000), (63, 65), (299, 301), (250, 700), (999, 1000)):
        assert [item.data for item in source.read(start, stop)] == contents[start:stop]


def test_only_the_row_groups_of_a_range_are_read(tmp_path):
    """Row groups outside of the range may be damaged: nobody sees it."""
    contents = [os.urandom(5000) for _ in range(6)]
    file = write_parquet(tmp_path / "x.parquet", contents)
    source = opened("parquet", source=file)
    stored = file.read_bytes()
    at = pq.read_metadata(file).row_group(2).column(0).dictionary_page_offset
    file.write_bytes(stored[:at] + bytes(5000) + stored[at + 5000 :])
    assert [item.data for item in source.read(0, 4)] == contents[:4]
    with pytest.raises(DataError, match=r"x\.parquet cannot be read near row 2"):
        list(source.read(3, 6))


def test_images_that_are_none_are_bad(tmp_path):
    source = opened("parquet", source=write_parquet(tmp_path / "x.parquet", [COLOUR[0], None, b"", COLOUR[1]]))
    reason = "the image has no bytes"
    assert whole(source)[1:3] == [Bad(f"{tmp_path}/x.parquet: row {i}", reason) for i in (1, 2)]
    rows = pa.array([None, {"bytes": b"x"}], pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    assert [type(item) for item in whole(opened("parquet", source=tmp_path))] == [Bad, Item]


@pytest.mark.parametrize(
    ("labels", "names", "row", "says"),
    [
        ([0, -1, 1, 0], None, 1, "label -1 is out of range; labels are 0 to 1"),
        ([0, 1, 100_000, 0], None, 2, "label 100000 is out of range; labels are 0 to 1"),
        ([0, 1, 2, 0], ["a", "b"], 2, "label 2 is out of range; labels are 0 to 1"),
        ([0, 1, 1, None], ["a", "b"], 3, "label None is out of range; labels are 0 to 1"),
    ],
)
def test_wrong_labels_are_bad(tmp_path, labels, names, row, says):
    file = write_parquet(tmp_path / "x.parquet", COLOUR, labels, names)
    found = whole(opened("parquet", source=file))
    assert found[row] == Bad(f"{file}: row {row}", says)
    assert sum(isinstance(item, Bad) for item in found) == 1


def test_classes_of_the_caller_win(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", COLOUR, [0, 1, 2, 3], ["a", "b", "c", "d"])
    source = parquet_source("known", "test", "here", [file], ("x", "y", "z"))
    assert (source.name, source.split, source.origin, source.classes) == ("known", "test", "here", ("x", "y", "z"))
    assert isinstance(whole(source)[3], Bad)


def test_wrong_files_are_one_line(tmp_path):
    assert "does not exist" in complaint("parquet", source=tmp_path / "none")
    assert "holds no Parquet files" in complaint("parquet", source=tmp_path)
    file = tmp_path / "x.parquet"
    file.write_bytes(b"PAR1 but nothing more")
    assert f"{file} cannot be read as Parquet" in complaint("parquet", source=file)
    pq.write_table(pa.table({"picture": [b"1"], "label": [1]}), file)
    assert f"{file} has no column image or img; it has picture, label" in complaint("parquet", source=file)
    pq.write_table(pa.table({"image": ["1"]}), file)
    assert "column image is string; it must be struct<bytes, path>" in complaint("parquet", source=file)
    rows = pa.array([{"bytes": encoded(COLOUR[0])}])
    pq.write_table(pa.table({"image": rows, "label": ["cat"]}), file)
    assert "column label is string; labels are integers" in complaint("parquet", source=file)
    write_parquet(file, [])
    assert "holds no images" in complaint("parquet", source=file)
    write_parquet(tmp_path / "y.parquet", COLOUR, [0, 1, 0, 1])
    write_parquet(file, COLOUR)
    assert "some files have labels and some have none" in complaint("parquet", source=tmp_path)
    write_parquet(file, COLOUR, [0, 1, 0, 1], ["a", "b"])
    assert f"{tmp_path}/y.parquet names its classes in another way than {file}" in complaint("parquet", source=tmp_path)


def test_files_that_change_or_go_are_one_line(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", COLOUR)
    source = opened("parquet", source=file)
    before = source.fingerprint()
    write_parquet(file, COLOUR[:3])
    with pytest.raises(DataError, match=r"x\.parquet has 3 rows, but had 4 when opened"):
        whole(source)
    assert opened("parquet", source=file).fingerprint() != before
    file.unlink()
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as Parquet"):
        whole(source)


def test_the_fingerprint_of_files_does_not_know_how_their_path_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(Path("x.parquet"), COLOUR)
    np.savez("x.npz", images=COLOUR[:, :6, :6])
    for name, file in (("parquet", "x.parquet"), ("npz", "x.npz")):
        ways = (file, f"./{file}", f"../{tmp_path.name}/{file}", tmp_path / file)
        marks = {opened(name, source=way).fingerprint() for way in ways}
        assert len(marks) == 1, name
        os.utime(file, (1, 1))
        assert opened(name, source=file).fingerprint() not in marks


def test_what_cannot_prepare_itself_says_how_it_is_prepared():
    assert "`cmray data prepare parquet --source PATH --out DIR`" in complaint("parquet")
