"""Small files in the forms that MNIST and CIFAR-10 are published in, made from seeded noise."""

import gzip
import io
import struct
import tarfile

import numpy as np

RNG = np.random.default_rng(0)
DIGITS = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 9], np.uint8)
CIFAR = RNG.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
CIFAR_LABELS = np.array([0, 9, 1, 8, 2, 7, 3, 6, 4, 5, 9, 0])
BATCHES = {**{f"data_batch_{i + 1}": slice(2 * i, 2 * i + 2) for i in range(5)}, "test_batch": slice(10, 12)}


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


def original_pickle(batch):
    """A dict as Python 2 wrote it: byte strings as BINSTRING, and arrays by numpy.core's old name."""

    def string(s):
        return b"U" + bytes([len(s)]) + s if len(s) < 256 else b"T" + struct.pack("<i", len(s)) + s

    def value(v):
        if isinstance(v, bytes):
            return string(v)
        if isinstance(v, int):
            return b"J" + struct.pack("<i", v)
        if isinstance(v, list):
            return b"](" + b"".join(map(value, v)) + b"e"
        shape = value(v.shape[0]) + value(v.shape[1]) + b"\x86"
        dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
        dtype += b"(K\x03" + string(b"|") + b"NNN" + value(-1) + value(-1) + b"K\x00tb"
        new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
        return new + b"(K\x01" + shape + dtype + b"\x89" + string(v.tobytes()) + b"tb"

    return b"\x80\x02}(" + b"".join(string(k) + value(v) for k, v in batch.items()) + b"u."


def python_batch(name, write=original_pickle, **changes):
    at = BATCHES[name]
    batch = {
        b"batch_label": b"training batch 1 of 5",
        b"labels": CIFAR_LABELS[at].tolist(),
        b"data": CIFAR[at].reshape(-1, 3072),
        b"filenames": [b"leptodactylus_pentadactylus_s_000004.png"] * 2,
    }
    return write({**batch, **{key.encode(): value for key, value in changes.items()}})


def python_batches(write=original_pickle):
    return {f"cifar-10-batches-py/{name}": python_batch(name, write) for name in BATCHES}


def binary_batches():
    rows = np.concatenate([CIFAR_LABELS[:, None].astype(np.uint8), CIFAR.reshape(12, -1)], axis=1)
    return {f"cifar-10-batches-bin/{name}.bin": rows[at].tobytes() for name, at in BATCHES.items()}


def tarball(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in {"cifar-10-batches-py/readme.html": b"hello", **files}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call
