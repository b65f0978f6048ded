"""The tab Edit: where an image comes from, and what a model makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmray.core.errors import CmrayError, DataError
from cmray.core.precond import to_pixels
from cmray.editing import editing_tasks
from cmray.engine.edit import Result, make_task
from cmray.engine.edit_inputs import Rule, read_pictures
from cmray.engine.images import ImageReader, find_images
from cmray.report.grids import grid_picture
from cmray.studio import canvas, values
from cmray.studio.samples import Answer
from cmray.studio.shelf import Entry, Shelf, timed

#: tasks of the tab, in the order of their buttons; interpolate has a tab of its own
TASKS = ("inpaint", "stroke", "colorize", "superres", "denoise")
#: what a person is to do
HINTS = {
    "inpaint": "Paint over what the model shall fill in. What you leave is kept to the bit.",
    "stroke": "Paint roughly what you want; the model makes an image of it.",
    "colorize": "The model sees the gray image and chooses the colours.",
    "superres": "The model sees the small image: the means of its patches are kept.",
    "denoise": "Noise of each level is added, and taken away by the model.",
}
#: most results of an image
MOST = 8
_COLUMNS = 6
_CELL, _WIDTH = 96, 660


def tasks_of(entry: Entry) -> list[str]:
    """Those that suit the model's images; none for a model that was distilled to fixed steps."""
    if entry.kind == "few-step":
        return []
    return [task for task in TASKS if _suits(task, entry)]


def factors_of(entry: Entry) -> list[int]:
    """Of superres: what divides the image and leaves more than one pixel."""
    _, height, width = entry.shape
    return [n for n in range(2, 17) if height % n == 0 and width % n == 0 and n < min(height, width)]


def default_level(entry: Entry) -> float:
    """Where a stroke begins unless a person says."""
    from cmray.editing.stroke import default_level as level

    return level(max(entry.shape[1:]))


class Sources:
    """Images to edit: of the dataset that a model learned, files, samples, an empty canvas. Readers are kept."""

    def __init__(self, shelf: Shelf):
        self._shelf = shelf
        self._readers: dict[str, ImageReader] = {}

    def count(self, name: str) -> int:
        """How many images the model's dataset has. Raises DataError where it is not here."""
        return self._reader(self._shelf.entry(name)).images.count

    def dataset(self, name: str, number: float | None) -> np.ndarray:
        """Image `number` of the model's dataset, uint8 [C,H,W]. Raises CmrayError."""
        entry = self._shelf.entry(name)
        reader, at = self._reader(entry), values.whole(number, "the image's number")
        if at >= reader.images.count:
            raise CmrayError(f"image {at} is asked for; {reader.images.name} has 0 to {reader.images.count - 1}")
        (pixels,) = reader.read(at, 1)
        if pixels.shape != entry.shape:
            found, wanted = ("x".join(map(str, shape)) for shape in (pixels.shape, entry.shape))
            raise DataError(f"images of {reader.images.name} are {found}, the model's are {wanted}")
        return pixels

    def file(self, name: str, path: str | None) -> np.ndarray:
        """An image file at the model's size, its middle square. Raises CmrayError."""
        entry = self._shelf.entry(name)
        if path is None:
            raise CmrayError("there is no file yet; choose an image, or drop one")
        try:
            (picture,) = read_pictures([path], Rule(entry.shape), 1, self._shelf.storage, "upload")
        except DataError as error:
            raise DataError(str(error).replace(path, Path(path).name)) from None
        return picture.pixels

    def sampled(self, name: str, seed: float | None) -> np.ndarray:
        """An image that the model draws in its usual number of steps. Raises CmrayError."""
        with self._shelf.using(name) as model:
            return model.sample(1, seed=values.whole(seed, "the seed"), uint8=True, block=1)[0].numpy()

    def empty(self, name: str, value: int) -> np.ndarray:
        """One gray value everywhere."""
        return np.full(self._shelf.entry(name).shape, value, np.uint8)

    def _reader(self, entry: Entry) -> ImageReader:
        data = entry.run.data
        place = str(data.path or data.name)
        if place not in self._readers:
            self._readers[place] = ImageReader(find_images(place, self._shelf.storage, f"the images of {entry.name}"))
        return self._readers[place]


def options_of(
    task: str, source: np.ndarray, drawn: Mapping[str, Any] | None, level: str, factor: int | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """The image that is edited, and the task's options. Raises CmrayError: nothing is drawn, no numbers."""
    if task == "inpaint":
        return source, {"mask": canvas.hole(drawn, *source.shape[1:])}
    if task == "stroke":
        chosen = values.levels(level, "the noise level") if level.strip() else []
        if len(chosen) > 1:
            raise CmrayError(f"a stroke begins at one noise level, found {len(chosen)}")
        return canvas.painting(drawn, source), {"level": chosen[0]} if chosen else {}
    if task == "superres":
        return source, {} if factor is None else {"factor": factor}
    if task == "denoise":
        return source, {"level": tuple(values.levels(level, "the noise levels"))} if level.strip() else {}
    return source, {}


def edit(
    shelf: Shelf,
    name: str,
    task: str,
    source: np.ndarray,
    options: Mapping[str, Any],
    *,
    num: int = 3,
    seed: int = 0,
    steps: int | None = None,
    labels: str = "",
) -> Answer:
    """The input, what the model was shown of it, and a result for each seed. Raises CmrayError.

    Args:
        source: uint8 [C,H,W] of the model's shape.
        options: of the task, from `options_of`.
        steps: noise levels; None for the task's own number.
    """
    with shelf.using(name) as model:
        results, seconds = timed(
            lambda: model.edits(
                task, source[None].copy(), num=num, seed=seed, steps=steps, labels=values.labels(labels), **options
            )
        )
        weights = model.weights
    kept = max(result.known_error for result in results)
    noun = "result" if len(results) == 1 else "results"
    parts = [
        f"{task} with {len(results)} {noun} in {values.seconds(seconds)}",
        f"{values.evaluations(results[0].nfe)} each",
        f"σ {values.shown_levels(sorted({t for result in results for t in result.times}, reverse=True))}",
        weights,
    ]
    if editing_tasks.get(task).has_truth and task != "denoise":
        parts.append("the known part is kept to the bit" if kept == 0 else f"the known part is kept to {kept:.1g}")
    rows = _ladder(source, results) if task == "denoise" else _row(task, source, results)
    return Answer(_picture(*rows), " · ".join(parts))


def _suits(task: str, entry: Entry) -> bool:
    if task == "superres":
        return bool(factors_of(entry))
    try:
        operator = make_task(task, {"word": "x"} if task == "inpaint" else {})
        if task != "inpaint":  # whose hole a person draws
            operator.check(entry.shape)
    except CmrayError:
        return False
    return True


Cells = tuple[list[np.ndarray], list[str], int]


def _row(task: str, source: np.ndarray, results: Sequence[Result]) -> Cells:
    """Input, what was shown, results: images, captions and columns."""
    given = to_pixels(results[0].given).numpy()
    shown = [] if np.array_equal(given, source) else [(given, "the model sees")]
    made = [(to_pixels(result.image).numpy(), f"seed {result.row.seed}") for result in results]
    cells = [(source, "painting" if task == "stroke" else "input"), *shown, *made]
    return [image for image, _ in cells], [text for _, text in cells], min(len(cells), _COLUMNS)


def _ladder(source: np.ndarray, results: Sequence[Result]) -> Cells:
    """For each seed a row of noisy images and one of what the model makes of them; a column a level."""
    images, captions = [], []
    for seed in sorted({result.row.seed for result in results}):
        ladder = sorted((r for r in results if r.row.seed == seed), key=lambda r: r.times[0])
        images += [source, *[to_pixels(result.given).numpy() for result in ladder]]
        images += [source, *[to_pixels(result.image).numpy() for result in ladder]]
        captions += ["input", *[f"σ {result.times[0]:g}" for result in ladder]]
        captions += ["input", *[f"seed {seed}"] * len(ladder)]
    return images, captions, len(images) // (2 * len({result.row.seed for result in results}))


def _picture(images: list[np.ndarray], captions: list[str], columns: int) -> Any:
    height = images[0].shape[1]
    scale = max(1, min(-(-_CELL // height), _WIDTH // (columns * height)))
    return grid_picture(np.stack(images), columns=columns, scale=scale, captions=captions)
