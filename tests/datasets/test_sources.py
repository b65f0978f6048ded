"""Datasets made from the user's files: what they hold comes through, and what is wrong with them is one line."""

import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cmray.config.data_facts import facts_of
from cmray.config.run import DataConfig
from cmray.core.errors import CmrayError
from cmray.datasets import datasets
from cmray.datasets.shards import read_shards, write_shards

RNG = np.random.default_rng(0)
DIGITS = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 9], np.uint8)
COLOUR = RNG.integers(0, 256, (4, 6, 7, 3), dtype=np.uint8)  # [N, H, W, C]


def load(name, **options):
    return datasets.parse({"name": name, **options}).load()


def complaint(name, **options):
    with pytest.raises(CmrayError) as error:
        load(name, **options)
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


# ---------------------------------------------------------------- IDX


def idx(values, magic=None):
    """An IDX file of bytes, written by hand."""
    header = (magic if magic is not None else 0x0800 + values.ndim).to_bytes(4, "big")
    return header + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def write_idx(folder, images=DIGITS, labels=LABELS, prefix="train", zipped=False):
    folder.mkdir(exist_ok=True)
    for name, values in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (folder / name).write_bytes(idx(values))
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_come_through(tmp_path, zipped):
    mnist = load("mnist", source=write_idx(tmp_path, zipped=zipped))
    assert (mnist.name, mnist.split, mnist.classes) == ("mnist", "train", tuple("0123456789"))
    assert np.array_equal(mnist.images, DIGITS[:, None])
    assert mnist.labels is not None
    assert (mnist.labels.dtype, mnist.labels.tolist()) == (np.int64, LABELS.tolist())
    write_shards(mnist, tmp_path / "out", 2)
    assert read_shards(tmp_path / "out").digest() == mnist.digest()


def test_the_test_split_is_the_t10k_files(tmp_path):
    write_idx(tmp_path)
    write_idx(tmp_path, DIGITS[:2], LABELS[:2], prefix="t10k")
    assert len(load("mnist", source=tmp_path, split="test")) == 2
    assert len(load("mnist", source=tmp_path)) == 5


def test_wrong_idx_files_are_one_line(tmp_path):
    source = write_idx(tmp_path / "mnist")
    images, labels = source / "train-images-idx3-ubyte", source / "train-labels-idx1-ubyte"
    good = images.read_bytes()
    assert "source" in complaint("mnist", source=tmp_path / "none")
    assert "does not exist" in complaint("mnist", source=tmp_path / "none")
    assert "no split 'test' of mnist" in complaint("mnist", source=source, split="test")
    for broken, says in (
        (idx(DIGITS, magic=0x0801), "begins with 0x00000801; an IDX file of bytes in 3D has 0x00000803"),
        (b"", "begins with 0x00000000"),
        (b"\x00\x00\x08\x03\x00\x00", "begins with 0x00000803"),
        (good[:-1], "holds 3,919 bytes of values, but its sizes are 5 x 28 x 28"),
        (good + b"\0", "holds 3,921 bytes of values"),
        (idx(DIGITS[:0]), "holds 0 bytes"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12 + good[16:], "4294967295 x 4294967295 x 4294967295"),
        (idx(DIGITS[:4]), "holds 4 images, but train-labels-idx1-ubyte 5 labels"),
        (idx(DIGITS[:, :20]), "images of mnist are 1x28x28, these are 1x20x28"),
    ):
        images.write_bytes(broken)
        text = complaint("mnist", source=source)
        assert says in text
        assert str(images if "these are" not in says else source) in text
    images.write_bytes(good)
    labels.write_bytes(idx(np.array([3, 1, 4, 1, 10], np.uint8)))
    assert "label 10 of image 4 is out of range" in complaint("mnist", source=source)
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


# ---------------------------------------------------------------- Parquet


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path, images, labels=None, names=None, image="image", label="label"):
    rows = [{"bytes": i if isinstance(i, bytes | None) else encoded(i), "path": None} for i in images]
    columns = {image: pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    if labels is not None:
        columns[label] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    if names is not None:
        features = {label: {"names": names, "_type": "ClassLabel"}, image: {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return path


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label")])
def test_colour_images_of_several_shards_keep_their_order(tmp_path, image, label):
    more = {"image": image, "label": label, "names": ["cat", "dog", "emu"]}
    write_parquet(tmp_path / "photos" / "train-00001-of-00002.parquet", COLOUR[3:], [0], **more)
    write_parquet(tmp_path / "photos" / "train-00000-of-00002.parquet", COLOUR[:3], [2, 1, 2], **more)
    photos = load("parquet", source=tmp_path / "photos")
    assert (photos.name, photos.split, photos.classes) == ("photos", "train", ("cat", "dog", "emu"))
    assert np.array_equal(photos.images, COLOUR.transpose(0, 3, 1, 2))
    assert photos.labels is not None
    assert photos.labels.tolist() == [2, 1, 2, 0]
    write_shards(photos, tmp_path / "out", 3)
    assert read_shards(tmp_path / "out").digest() == photos.digest()


def test_without_names_classes_are_called_by_number(tmp_path):
    file = write_parquet(tmp_path / "few.parquet", COLOUR, [0, 2, 2, 0])
    assert load("parquet", source=file).classes == ("0", "1", "2")


def test_labels_are_optional(tmp_path):
    few = load("parquet", source=write_parquet(tmp_path / "few.parquet", COLOUR))
    assert few.labels is None
    assert few.classes == ()
    assert (few.name, few.split) == ("few", "all")


def test_grayscale_stays_one_channel_and_becomes_colour_among_colour(tmp_path):
    gray = COLOUR[..., 0]
    one = load("parquet", source=write_parquet(tmp_path / "gray.parquet", gray))
    assert np.array_equal(one.images, gray[:, None])
    for first, second in ((gray[0], COLOUR[1]), (COLOUR[1], gray[0])):
        both = load("parquet", source=write_parquet(tmp_path / "both.parquet", [first, second]))
        assert both.shape == (3, 6, 7)
        for found, given in zip(both.images, (first, second), strict=True):
            assert np.array_equal(found, np.broadcast_to(given[None] if given.ndim == 2 else given.transpose(2, 0, 1),
                                                         (3, 6, 7)))  # fmt: skip


def test_jpeg_and_palette_are_read(tmp_path):
    palette = Image.fromarray(COLOUR[0]).quantize(16)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    file = write_parquet(tmp_path / "mixed.parquet", [encoded(COLOUR[0], "JPEG"), buffer.getvalue()])
    mixed = load("parquet", source=file)
    assert np.array_equal(mixed.images[1], np.asarray(palette.convert("RGB")).transpose(2, 0, 1))


def test_splits_are_not_mixed(tmp_path):
    for split, n in (("train", 3), ("test", 1)):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", COLOUR[:n])
    assert "holds the splits test, train; choose one with --split" in complaint("parquet", source=tmp_path)
    assert "no Parquet files of the split 'dev'; it has test, train" in complaint(
        "parquet", source=tmp_path, split="dev"
    )
    assert len(load("parquet", source=tmp_path, split="train")) == 3


@pytest.mark.parametrize("name", ["train/0000.parquet", "data/train.parquet"])
def test_splits_are_known_by_folder_and_name_too(tmp_path, name):
    write_parquet(tmp_path / name, COLOUR)
    assert load("parquet", source=tmp_path).split == "train"


def test_mnist_is_read_from_parquet_too(tmp_path):
    write_parquet(tmp_path / "test-00000-of-00001.parquet", DIGITS, LABELS.tolist())
    mnist = load("mnist", source=tmp_path, split="test")
    assert np.array_equal(mnist.images, DIGITS[:, None])
    assert mnist.classes == tuple("0123456789"), "also where the highest label is not there"
    assert "no Parquet files of the split 'train'; it has test" in complaint("mnist", source=tmp_path)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", DIGITS, [1, 2, 10, 3, 4])
    assert "row 2: label 10 is out of range; labels are 0 to 9" in complaint("mnist", source=tmp_path, split="test")
    write_parquet(tmp_path / "test-00000-of-00001.parquet", COLOUR, [1, 2, 3, 4])
    assert "these are 3x6x7" in complaint("mnist", source=tmp_path, split="test")


def test_wrong_images_name_file_and_row(tmp_path):
    file = tmp_path / "x.parquet"
    seen_through = np.concatenate([COLOUR[0], COLOUR[0][..., :1]], axis=2)
    deep = COLOUR[0][..., 0].astype(np.uint16)
    for third, says in (
        (COLOUR[0][:4], "row 2: the image is 4x7, but the first one is 6x7; all must be of one size"),
        (b"not a picture", "row 2: the image cannot be decoded: not an image"),
        (encoded(COLOUR[0])[:60], "row 2: the image cannot be decoded"),
        (None, "row 2: the image has no bytes"),
        (b"", "row 2: the image has no bytes"),
        (seen_through, "row 2: the image is of mode RGBA"),
        (deep, "row 2: the image is of mode I;16"),
    ):
        write_parquet(file, [COLOUR[0], COLOUR[1], third])
        text = complaint("parquet", source=file)
        assert says in text
        assert str(file) in text


@pytest.mark.parametrize(
    ("labels", "names", "says"),
    [
        ([0, -1, 1, 0], None, "row 1: label -1 is out of range; labels are 0 to 99999"),
        ([0, 1, 2, 0], ["a", "b"], "row 2: label 2 is out of range; labels are 0 to 1"),
        ([0, 1, 1, None], None, "row 3: label None is out of range"),
    ],
)
def test_wrong_labels_name_file_and_row(tmp_path, labels, names, says):
    file = write_parquet(tmp_path / "x.parquet", COLOUR, labels, names)
    assert f"{file}: {says}" in complaint("parquet", source=file)


def test_wrong_files_are_one_line(tmp_path):
    assert "does not exist" in complaint("parquet", source=tmp_path / "none")
    assert "holds no Parquet files" in complaint("parquet", source=tmp_path)
    file = tmp_path / "x.parquet"
    file.write_bytes(b"PAR1 but nothing more")
    assert f"{file} cannot be read as Parquet" in complaint("parquet", source=file)
    pq.write_table(pa.table({"picture": [b"1"], "label": [1]}), file)
    assert f"{file} has no column image or img; it has picture, label" in complaint("parquet", source=file)
    pq.write_table(pa.table({"image": [b"1"]}), file)
    assert "column image is binary; the Hugging Face layout is struct<bytes, path>" in complaint("parquet", source=file)
    rows = pa.array([{"bytes": encoded(COLOUR[0])}])
    pq.write_table(pa.table({"image": rows, "label": ["cat"]}), file)
    assert "column label is string; labels are integers" in complaint("parquet", source=file)
    write_parquet(file, [])
    assert "holds no images" in complaint("parquet", source=file)
    content = write_parquet(file, COLOUR).read_bytes()
    file.write_bytes(content[:40] + bytes(200) + content[240:])
    assert str(file) in complaint("parquet", source=file)
    write_parquet(tmp_path / "y.parquet", COLOUR, [0, 1, 0, 1])
    write_parquet(file, COLOUR)
    assert "some files have labels and some have none" in complaint("parquet", source=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "parquet"])
def test_what_cannot_prepare_itself_says_how_it_is_prepared(tmp_path, name):
    command = f"`cmray data prepare {name} --source PATH --out DIR`"
    assert command in complaint(name)
    with pytest.raises(CmrayError, match=f"cmray data prepare {name} --source"):
        facts_of(DataConfig(name=name), tmp_path)
