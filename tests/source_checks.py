"""What tests of image sources share: reading them, and what all of them promise."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cmray.core.errors import CmrayError
from cmray.datasets import datasets
from cmray.datasets.source import Bad


def opened(name, **options):
    return datasets.parse({"name": name, **options}).open()


def everything(source):
    return list(source.read(0, len(source)))


def pixels_of(source):
    return np.stack([item.data for item in everything(source)])


def labels_of(source):
    return [item.label for item in everything(source)]


def complaint(name, **options):
    with pytest.raises(CmrayError) as error:
        everything(opened(name, **options))
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


def same_items(some, others):
    pairs = list(zip(some, others, strict=True))
    return all(
        type(a) is type(b)
        and a.where == b.where
        and (isinstance(a, Bad) or (a.label == b.label and np.array_equal(a.data, b.data)))
        for a, b in pairs
    )


def check_contract(source):
    """What every source promises: ranges are slices, a copy in another process is the same source."""
    whole = everything(source)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(whole)
    assert copy.fingerprint() == source.fingerprint()
    assert same_items(everything(copy), whole)

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(whole)), st.integers(0, len(whole)))
    def ranges_are_slices(start, stop):
        assert same_items(list(source.read(start, stop)), whole[start:stop])

    ranges_are_slices()


def write_parquet(path, images, labels):
    """Images [N, H, W] or [N, H, W, C] in the layout of Hugging Face."""
    rows = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": image, "label": pa.array(labels, pa.int64())}), path)


def decoded(source):
    return np.stack([np.asarray(Image.open(io.BytesIO(item.data))) for item in everything(source)])


def unpacked(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
