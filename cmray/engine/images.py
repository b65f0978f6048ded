"""Images that are there already (a prepared dataset, a folder, an .npz), read by range in any process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cmray.config.data_facts import DataFacts, facts_of
from cmray.config.identity import content_hash
from cmray.config.run import DataConfig
from cmray.core.errors import DataError
from cmray.core.rng import numpy_generator
from cmray.datasets import datasets
from cmray.datasets.images import ImageRule, Resolved, resolve
from cmray.datasets.location import Location
from cmray.datasets.manifest import MANIFEST, read_manifest
from cmray.datasets.prepare import make_piece
from cmray.datasets.shards import ShardReader
from cmray.datasets.source import ImageSource
from cmray.datasets.verified import verify_once
from cmray.datasets.whole import load_whole

#: decides which images are drawn where not all are wanted
DRAW_SEED = 0


@dataclass(frozen=True)
class ImageSet:
    """Where images are. Plain, so that it travels.

    Args:
        kind: shards of a prepared dataset, a dataset that comes with cmray, a folder of files, or an .npz.
        place: the folder, the dataset's name, or the file.
        shape: (C, H, W).
        count: how many are taken.
        digest: changes when the images do.
        total: of how many they were drawn; None takes all.
    """

    kind: Literal["shards", "named", "folder", "npz"]
    place: str
    name: str
    split: str
    count: int
    shape: tuple[int, int, int]
    digest: str
    total: int | None = None

    def __str__(self) -> str:
        return self.name if self.total is None else f"{self.name}, drawn of {self.total:,} with seed {DRAW_SEED}"


def drawn(images: ImageSet, count: int) -> ImageSet:
    """`count` of the images, drawn without replacement by a fixed seed; all of them where that is how many there are.

    The first ones would be those of one class where folders are classes. Raises DataError where there are fewer.
    """
    if count > images.count:
        raise DataError(f"{images.name} holds {images.count:,} images, and {count:,} are asked for")
    if count == images.count:
        return images
    digest = content_hash([images.digest, "drawn", DRAW_SEED, count])
    return replace(images, count=count, digest=digest, total=images.count)


def _places(images: ImageSet) -> np.ndarray:
    """Where each image that is taken stands among all, int64 [count], ascending: each is read once, in their order."""
    if images.total is None:
        return np.arange(images.count)
    return np.sort(numpy_generator("drawn images", DRAW_SEED).permutation(images.total)[: images.count])


def image_set_of(data: DataFacts) -> ImageSet:
    """A prepared dataset, or one that will be when it is read."""
    return ImageSet("shards", str(data.folder), data.name, data.split, data.count, data.shape, data.digest)


def find_images(text: str, storage: Path, option: str) -> ImageSet:
    """What a user means by images: a dataset's name, a prepared folder or its URL, a folder of images, or an .npz.

    Raises:
        DataError: none of these; an empty folder; a damaged file. The message names `option`.
    """
    path = Path(text).expanduser()
    try:
        if "://" in text or (path / MANIFEST).is_file():
            place = text if "://" in text else str(path.absolute())
            return image_set_of(facts_of(DataConfig(path=place), storage))
        if path.is_dir() or (path.is_file() and path.suffix.lower() == ".npz"):
            return _files("folder" if path.is_dir() else "npz", path.absolute())
        if text in datasets.names() and not path.exists():
            facts = facts_of(DataConfig(name=text), storage)
            if facts.prepared:
                return image_set_of(facts)
            return ImageSet("named", text, facts.name, facts.split, facts.count, facts.shape, facts.digest)
    except DataError as error:
        raise DataError(f"{option}: {error}") from None
    what = "is no folder and no .npz file" if path.exists() else "does not exist"
    raise DataError(f"{option}: {text} {what}; give images as a folder, an .npz, a prepared folder or a dataset's name")


def _files(kind: Literal["folder", "npz"], path: Path) -> ImageSet:
    source, resolved = _opened(kind, str(path))
    digest = content_hash([kind, source.fingerprint(), list(resolved.shape)])
    return ImageSet(kind, str(path), source.name, source.split, len(source), resolved.shape, digest)


def _opened(kind: str, place: str) -> tuple[ImageSource, Resolved]:
    source = datasets.parse({"name": kind, "source": place}).open()
    return source, resolve(ImageRule.model_validate({"encoding": "raw"}), source)


def verify_images(images: ImageSet, storage: Path) -> None:
    """Hashes the shards of a prepared dataset that nobody has hashed yet. Raises DataError where they are damaged."""
    if images.kind == "shards":
        verify_once(images.place, read_manifest(images.place), storage / "verified")


class ImageReader:
    """Ranges of an ImageSet. Raises DataError where images are gone, damaged or of another size."""

    def __init__(self, images: ImageSet):
        self.images, self._places = images, _places(images)
        if images.kind == "shards":
            place = Location(images.place)
            self._manifest = read_manifest(place)
            self._shards = ShardReader(place, self._manifest)
        elif images.kind == "named":
            self._whole = load_whole(datasets.parse(images.place)).images
        else:
            self._source, self._resolved = _opened(images.kind, images.place)

    def read(self, first: int, count: int) -> np.ndarray:
        """Images first <= i < first + count of those that are taken, uint8 [count,C,H,W]."""
        places = self._places[first : first + count]
        if self.images.kind == "shards":
            found = []
            for block in self._manifest.blocks():
                start, stop = np.searchsorted(places, (block.first, block.first + block.rows))
                if start < stop:
                    pixels, _ = self._shards.read(block)
                    found.append(pixels[places[start:stop] - block.first])
            return np.concatenate(found)
        if self.images.kind == "named":
            return self._whole[places]
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        return np.concatenate([self._decoded(int(run[0]), int(run[-1]) + 1) for run in runs])

    def _decoded(self, first: int, stop: int) -> np.ndarray:
        """Images first <= i < stop of a folder or an .npz."""
        piece = make_piece(self._source, self._resolved, (first, stop))
        if piece.bad:
            reason = piece.bad[0].reason.partition("; --crop")[0]
            raise DataError(f"{piece.bad[0].where}: {reason}")
        assert isinstance(piece.images, np.ndarray)
        return piece.images
