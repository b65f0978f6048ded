"""Images in one NumPy archive, as samplers write them: arr_0 uint8 [N, H, W, C], and arr_1 with labels if there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmray.core.errors import DataError
from cmray.datasets.arrays import ARCHIVE_ERRORS, FileArrays, printable, require_labels
from cmray.datasets.base import datasets
from cmray.datasets.source import ImageSource, SourceConfig

#: names of the images and of the labels
KEYS = (("arr_0", "arr_1"), ("images", "labels"))
#: a label at or above this is a damaged one
MAX_CLASSES = 100_000


@datasets.register("npz")
class Npz(SourceConfig):
    """Images of one size in an .npz file, with integer labels or without."""

    def open(self) -> ImageSource:
        path = self.existing_source()
        arrays = read_npz(path)
        images, labels = next((i, n) for i, n in KEYS if i in arrays)
        pixels, given = arrays[images], arrays.get(labels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
            raise DataError(
                f"{path}: {images} is {pixels.dtype} {list(pixels.shape)}; images are uint8 [N, H, W, C] with C 1 or 3"
            )
        if not pixels.size:
            raise DataError(f"{path}: {images} is {list(pixels.shape)}, which holds no images")
        classes: tuple[str, ...] = ()
        if given is not None:
            if not np.issubdtype(given.dtype, np.integer) or given.shape != pixels.shape[:1]:
                raise DataError(
                    f"{path}: {labels} is {given.dtype} {list(given.shape)}; "
                    f"labels are integers [{len(pixels)}], one for each image"
                )
            require_labels(path, given, MAX_CLASSES)
            given = given.astype(np.int64)
            classes = tuple(map(str, range(int(given.max()) + 1)))
        return FileArrays(path.stem, "all", str(path), classes, pixels.transpose(0, 3, 1, 2), given, (path,))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that holds exactly images, or images and labels. Raises DataError."""
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array; an .npz archive with {_wanted()} is read")
        with opened:
            names = set(opened.files)
            if not any(names in ({images}, {images, labels}) for images, labels in KEYS):
                raise DataError(
                    f"{path} holds {printable(', '.join(sorted(names))) or 'nothing'}; exactly {_wanted()} is read"
                )
            return {name: opened[name] for name in names}
    except (KeyError, *ARCHIVE_ERRORS) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read as an .npz archive: {printable(reason)}") from None


def _wanted() -> str:
    return " or ".join(f"{images} (and {labels})" for images, labels in KEYS)
