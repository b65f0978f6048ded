"""The tabs Sample and Compare: images of one model, or of several from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cmray.core.errors import CmrayError
from cmray.core.precond import to_pixels
from cmray.core.rng import SampleNoise
from cmray.objectives.base import TEACHER_NFE
from cmray.report.drawn import levels_of
from cmray.report.grids import grid_picture
from cmray.report.trajectory import strip_picture
from cmray.studio import values
from cmray.studio.shelf import Entry, Shelf, timed

if TYPE_CHECKING:
    from PIL.Image import Image

    from cmray.engine.trained import TrainedModel

#: where noise levels come from
Source = Literal["spread", "searched", "given"]
#: most images of a grid, of a row of Compare, and of a trajectory
MOST, MOST_BESIDE, MOST_WAYS = 64, 16, 3
#: pixels of a picture's width that a grid fills, and of a cell at least, for its caption
_WIDTH, _CELL = 640, 44
#: blocks that images go through the network in: the smallest that holds all
_BLOCKS = (4, 16, 64)


@dataclass(frozen=True)
class Wish:
    """What a person asks for.

    Args:
        steps: network evaluations an image; unused where the times are given.
        times: noise levels as text, where `source` is "given".
        labels: as text; empty leaves them to the seeds.
    """

    seed: int = 0
    count: int = 16
    steps: int = 1
    source: Source = "spread"
    times: str = ""
    labels: str = ""

    def how(self) -> dict[str, Any]:
        """The arguments of `TrainedModel.sampler`. Raises CmrayError."""
        if self.source == "given":
            return {"times": values.levels(self.times)}
        nfe = values.whole(self.steps, "the number of evaluations", 1)
        return {"nfe": nfe, "times": "searched"} if self.source == "searched" else {"nfe": nfe}


@dataclass(frozen=True)
class Answer:
    """A picture, and what is to be said of it in Markdown."""

    picture: Image
    text: str


@dataclass(frozen=True)
class Steps:
    """How many network evaluations a slider of a model offers."""

    least: int
    most: int
    step: int
    usual: int


def steps_of(entry: Entry) -> Steps:
    """A consistency model takes any number, a teacher n Heun steps, a distilled one its own."""
    own = entry.run.objective.own_nfe
    if entry.kind == "denoiser":
        return Steps(1, 79, 2, TEACHER_NFE)
    return Steps(1, 16, 1, 1) if own is None else Steps(own, own, 1, own)


def sample(shelf: Shelf, name: str, wish: Wish) -> Answer:
    """A grid with the seed under each image, and how it was made. Raises CmrayError."""
    count, seed = values.whole(wish.count, "the number of images", 1), values.whole(wish.seed, "the seed")
    given = values.labels(wish.labels)
    with shelf.using(name) as model:
        images, seconds = _drawn(model, wish, count, seed, given)
        sampler = model.sampler(**wish.how())
        facts = _facts(model, sampler.title, sampler.nfe, sampler.times)
    height = images.shape[2]
    columns = min(count, max(4, round(count**0.5)))
    picture = grid_picture(
        images,
        columns=columns,
        scale=max(-(-_CELL // height), min(_WIDTH // (columns * height), 256 // height), 1),
        captions=_captions(model, seed, count, given),
    )
    noun = "images" if count > 1 else "image"
    line = f"{facts} · {count} {noun} in {values.seconds(seconds)} · {_parameters(model):,} parameters"
    return Answer(picture, f"{line}\n\n`{_command(shelf, name, wish, count, seed)}`")


def way(shelf: Shelf, name: str, wish: Wish) -> Image:
    """The way from noise to the first images of `sample`. Raises CmrayError."""
    count, seed = min(values.whole(wish.count, "the number of images", 1), MOST_WAYS), values.whole(wish.seed, "seed")
    with shelf.using(name) as model:
        moments, images = model.trajectory(count, seed=seed, labels=values.labels(wish.labels), **wish.how())
    names = [f"seed {seed + i}" for i in range(count)]
    return strip_picture(levels_of(model.run, moments), to_pixels(images).numpy(), names)


def compare(shelf: Shelf, names: Sequence[str], wish: Wish, own: bool) -> Answer:
    """A row a model, a column a seed: the same noise in every column.

    Args:
        own: whether each takes the number of evaluations that it is usually sampled with.

    Raises:
        CmrayError: no model, models of images of several shapes, or what one of them cannot do; it is named.
    """
    if not names:
        raise CmrayError("choose at least one model")
    entries = [shelf.entry(name) for name in names]
    first = entries[0]
    for entry in entries:
        if entry.shape != first.shape:
            shapes = [f"{e.name} makes {'x'.join(map(str, e.shape))}" for e in (first, entry)]
            raise CmrayError(f"the same noise needs images of the same shape: {', '.join(shapes)}")
    count, seed = values.whole(wish.count, "the number of images", 1), values.whole(wish.seed, "the seed")
    labels = values.labels(wish.labels)
    if labels is not None and not any(entry.num_classes for entry in entries):
        raise CmrayError("labels are given, but none of these models is class-conditional; leave them out")
    rows, lines = [], ["| model | sampler | seconds | parameters |", "| :--- | :--- | ---: | ---: |"]
    for entry in entries:
        asked = Wish(seed, count, steps_of(entry).usual) if own else wish
        given = labels if entry.num_classes else None
        try:
            with shelf.using(entry.name) as model:
                images, seconds = _drawn(model, asked, count, seed, given)
                sampler = model.sampler(**asked.how())
        except CmrayError as error:
            text = str(error)
            raise CmrayError(text if entry.name in text else f"{entry.name}: {text}") from None
        rows.append(images)
        facts = _facts(model, sampler.title, sampler.nfe, sampler.times)
        lines.append(f"| {shelf.title(entry.name)} | {facts} | {seconds:.3f} | {_parameters(model):,} |")
    height = first.shape[1]
    picture = grid_picture(
        np.concatenate(rows),
        columns=count,
        scale=max(-(-_CELL // height), min(_WIDTH // (count * height), 128 // height), 1),
        captions=[str(seed + i) for i in range(count)] * len(rows),
        row_labels=[_row_label(shelf, entry) for entry in entries],
    )
    return Answer(picture, "\n".join(lines))


def known_times(shelf: Shelf, name: str) -> dict[int, tuple[float, ...]]:
    """By evaluations, the times that were searched for a model. Raises CmrayError."""
    from cmray.engine.model import weights_file
    from cmray.engine.searched import searched_times

    entry = shelf.entry(name)
    digest = entry.facts.files[weights_file(entry.facts, shelf.weights, entry.checkpoint)]
    return {nfe: found.times for nfe, found in searched_times(entry.folder, digest).items()}


def _drawn(
    model: TrainedModel, wish: Wish, count: int, seed: int, labels: list[int] | None
) -> tuple[np.ndarray, float]:
    """Pixels [n,C,H,W], and the seconds they took."""
    block = next((size for size in _BLOCKS if count <= size), _BLOCKS[-1])
    images, seconds = timed(
        lambda: model.sample(count, seed=seed, labels=labels, uint8=True, block=block, **wish.how())
    )
    return images.numpy(), seconds


def _facts(model: TrainedModel, title: str, nfe: int, times: Sequence[float]) -> str:
    return f"{title} at σ {values.shown_levels(times)} · {values.evaluations(nfe)} · {model.weights}"


def _parameters(model: TrainedModel) -> int:
    return sum(p.numel() for p in model.model.net.parameters())


def _captions(model: TrainedModel, seed: int, count: int, given: list[int] | None) -> list[str]:
    """The seed of each image, and its label."""
    seeds = range(seed, seed + count)
    if not model.num_classes:
        return [str(one) for one in seeds]
    own = SampleNoise(seeds, model.shape).integers(model.num_classes).tolist()
    labels = own if given is None else [given[i % len(given)] for i in range(count)]
    return [f"{one} · {label}" for one, label in zip(seeds, labels, strict=True)]


def _row_label(shelf: Shelf, entry: Entry) -> str:
    title = shelf.title(entry.name)
    return entry.name.rsplit("/", 1)[-1] if title == entry.name else title


def _command(shelf: Shelf, name: str, wish: Wish, count: int, seed: int) -> str:
    words = ["sample", name]
    if wish.source == "given":
        words += ["--times", ",".join(f"{t:g}" for t in values.levels(wish.times))]
    else:
        words += ["--nfe", str(wish.steps)]
        if wish.source == "searched":
            words += ["--times", "searched"]
    if values.labels(wish.labels):
        words += ["--class", ",".join(map(str, values.labels(wish.labels) or []))]
    return shelf.command(*words, "--num", str(count), "--seed", str(seed), "--out", "samples.png")
