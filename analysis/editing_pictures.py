"""Makes the pictures of docs/editing.md with `cmray edit`: all tasks on a trained model.

    python analysis/editing_pictures.py quickstart/cd-1a2b3c docs/images --prefix editing-digits

Every command is printed as it runs. Inputs are images of the data that the model was trained on; paintings are drawn
here: strokes of a thick pen for gray images, flat patches of few colours made of an image for coloured ones.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import cmray
from cmray.engine.edit_inputs import Rule, read_pictures

#: strokes on a canvas of 64 x 64: a seven, a two and a zero, as one draws them with a mouse
STROKES = (
    [(14, 10), (50, 12), (34, 34), (26, 58)],
    [(16, 18), (32, 8), (46, 20), (30, 38), (14, 54), (52, 54)],
    [(32, 8), (16, 24), (18, 46), (34, 56), (48, 42), (46, 18), (32, 8)],
)


def drawings(folder: Path) -> None:
    """White strokes on black, as digits are."""
    for i, points in enumerate(STROKES):
        image = Image.new("L", (64, 64), 0)
        ImageDraw.Draw(image).line(points, fill=255, width=13, joint="curve")
        image.save(folder / f"drawing-{i}.png")


def paintings(folder: Path, images: list[np.ndarray]) -> None:
    """Images [3,H,W] with all details gone: patches of six colours."""
    for i, pixels in enumerate(images):
        image = Image.fromarray(pixels.transpose(1, 2, 0))
        size = max(3, image.width // 10 * 2 + 1)
        flat = image.filter(ImageFilter.ModeFilter(size)).quantize(6).convert("RGB")
        flat.filter(ImageFilter.ModeFilter(size)).save(folder / f"painting-{i}.png")


def commands(run: str, out: Path, prefix: str, data: str, folder: Path, channels: int, side: int) -> list[list[str]]:
    """The arguments of `cmray edit` for every picture."""
    quarter = side // 4
    box = f"{quarter},{quarter},{2 * quarter},{2 * quarter}"
    source = ["--input", data, "--take", "3"]
    many: list[tuple[str, str, list[str]]] = [
        ("inpaint", "inpaint.png", [*source, "--box", box]),
        ("inpaint", "word.png", [*source, "--word", "X"]),
        ("superres", "superres.png", [*source, "--factor", "2" if side <= 8 else "4"]),
        ("stroke", "stroke.png", ["--input", str(folder)]),
        ("interpolate", "interpolate.png", ["--seed", "3", "--num", "3", "--frames", "10"]),
        ("interpolate", "interpolate.gif", ["--between", "3,4", "--frames", "24"]),
        ("denoise", "denoise.png", ["--input", data, "--take", "2"]),
    ]
    if channels == 3:
        many.insert(1, ("colorize", "colorize.png", source))
    return [[task, run, *options, "--out", str(out / f"{prefix}-{name}")] for task, name, options in many]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="EXPERIMENT/TRIAL or a checkpoint's folder")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--prefix", default="editing", help="how their names begin")
    parser.add_argument("--input", help="a dataset, .npz or folder; default what the model was trained on")
    parser.add_argument("--storage", type=Path, help="folder of all results; default as in cmray")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = cmray.load(given.run, given.storage)
    data = given.input or str(model.run.data.path or model.run.data.name)
    channels, _, side = model.shape
    storage = ["--storage", str(given.storage)] if given.storage else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if channels == 1:
            drawings(folder)
        else:
            place = given.storage or Path("cmray-data")
            found = read_pictures([data], Rule(model.shape), 3, place.absolute(), "--input")
            paintings(folder, [picture.pixels for picture in found])
        for words in commands(given.run, given.out, given.prefix, data, folder, channels, side):
            print("cmray edit", shlex.join(words), flush=True)
            ran = subprocess.run(
                [sys.executable, "-m", "cmray", "edit", *words, *storage, "--json"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
            )  # fmt: skip
            for note in json.loads(ran.stdout)["notes"]:
                print("   ", note, flush=True)


if __name__ == "__main__":
    main()
