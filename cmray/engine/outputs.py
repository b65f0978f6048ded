"""Drawn images as one file or a folder, written part by part beside its place and renamed at the end."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmray.core.files import beside
from cmray.engine.drawing import Drawing, Parts

INDEX = "index.csv"


def write_npz(parts: Parts, path: Path, about: Mapping[str, str]) -> None:
    """arr_0 uint8 [N,H,W,C], and arr_1 int64 [N] with the labels of a class-conditional model, as the Consistency
    Models reference code writes its samples; not compressed. `about` has no place in it."""
    drawing = parts.drawing
    channels, height, width = drawing.shape
    with beside(path) as tmp, zipfile.ZipFile(tmp, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            head = {"descr": "|u1", "fortran_order": False, "shape": (drawing.count, height, width, channels)}
            np.lib.format.write_array_header_1_0(file, head)
            for _, pixels in parts.read():
                file.write(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).data)
        if (labels := _labels(drawing)) is not None:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, labels, allow_pickle=False)


def write_safetensors(parts: Parts, path: Path, about: Mapping[str, str]) -> None:
    """images uint8 [N,C,H,W], seeds int64 [N], labels int64 [N] of a class-conditional model; `about` as metadata."""
    drawing = parts.drawing
    seeds = np.arange(drawing.first_seed, drawing.first_seed + drawing.count, dtype=np.int64)
    more = {"seeds": seeds, "labels": _labels(drawing)}
    vectors = {name: value for name, value in more.items() if value is not None}
    # the widest numbers first: the format wants every tensor aligned to its own
    head: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, dtype, shape, nbytes in (
        *((name, "I64", [drawing.count], value.nbytes) for name, value in vectors.items()),
        ("images", "U8", [drawing.count, *drawing.shape], drawing.count * int(np.prod(drawing.shape))),
    ):
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with beside(path) as tmp, tmp.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in vectors.values():
            file.write(value.astype("<i8").data)
        for _, pixels in parts.read():
            file.write(np.ascontiguousarray(pixels).data)


def write_folder(parts: Parts, path: Path, about: Mapping[str, str]) -> None:
    """A PNG an image, named by its seed, and index.csv with file, seed and label (empty without classes).

    `path` is not there yet, or an empty folder. `about` is kept as sampler.json.
    """
    from PIL import Image

    with beside(path) as tmp:
        tmp.mkdir()
        with (tmp / INDEX).open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("file", "seed", "label"))
            for places, pixels in parts.read():
                labels = parts.drawing.label_of(places)
                for i, (seed, image) in enumerate(zip(parts.drawing.seeds(places), pixels, strict=True)):
                    shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                    Image.fromarray(np.ascontiguousarray(shown)).save(tmp / f"{seed:06d}.png")
                    rows.writerow((f"{seed:06d}.png", seed, "" if labels is None else labels[i]))
        (tmp / "sampler.json").write_text(json.dumps(dict(about), indent=1) + "\n")


#: by the ending of the name
WRITERS: dict[str, Callable[[Parts, Path, Mapping[str, str]], None]] = {
    ".npz": write_npz,
    ".safetensors": write_safetensors,
    "": write_folder,
}


def _labels(drawing: Drawing) -> np.ndarray | None:
    found = [labels for places in drawing.parts() if (labels := drawing.label_of(places)) is not None]
    return np.concatenate(found) if found else None
