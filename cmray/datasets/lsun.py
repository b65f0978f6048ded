"""LSUN: one LMDB folder for each category, with encoded photos under keys that are hashes. It has no labels."""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cmray.core.errors import DataError
from cmray.datasets.base import Usual, datasets
from cmray.datasets.source import Bad, ImageSource, Item, SourceConfig, fingerprint_files

#: one key in so many is kept: 3 million keys are 120 MB, and a cursor finds the others
STRIDE = 4096


@datasets.register("lsun")
class Lsun(SourceConfig):
    """Photos of a scene or object category, at least 256 px (Yu et al. 2015), such as bedroom_train_lmdb."""

    usual: ClassVar[Usual | None] = Usual((3, 256, 256), 0, 3_033_042)  # bedroom's; cat has 1,657,266
    usual_rule: ClassVar[dict[str, Any]] = {"crop": "lsun", "size": 256, "channels": 3}

    def open(self) -> ImageSource:
        source = self.existing_source()
        if not (source / "data.mdb").is_file():
            raise DataError(f"{source} is no LMDB folder: it has no data.mdb")
        lmdb = _lmdb()
        try:
            environment = _environment(source)
            with environment.begin() as transaction, transaction.cursor() as cursor:
                count = transaction.stat()["entries"]
                keys = tuple(k for i, k in enumerate(cursor.iternext(keys=True, values=False)) if i % STRIDE == 0)
        except (lmdb.Error, OSError) as error:
            raise DataError(f"{source / 'data.mdb'} cannot be read: {error}") from None
        if not count:
            raise DataError(f"{source} holds no images")
        split = next((s for s in ("train", "val", "test") if s in source.resolve().name.split("_")), "all")
        return LmdbImages("lsun", split, str(source), (), source, count, keys)


@dataclass(frozen=True)
class LmdbImages(ImageSource):
    """The values of an LMDB folder in the order of their keys.

    Args:
        keys: of the images 0, STRIDE, 2 * STRIDE, ...
    """

    folder: Path
    count: int
    keys: tuple[bytes, ...] = field(repr=False)

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Iterator[Item | Bad]:
        if start >= stop:
            return
        lmdb = _lmdb()
        try:
            environment = _environment(self.folder)
            with environment.begin() as transaction, transaction.cursor() as cursor:
                there = cursor.set_key(self.keys[start // STRIDE])
                for _ in range(start % STRIDE):
                    there = there and cursor.next()
                for i in range(start, stop):
                    if not there:
                        raise DataError(f"{self.folder} changed since it was opened: it has no image {i} now")
                    key, value = cursor.item()
                    yield Item(f"{self.folder}: {key.decode('ascii', 'backslashreplace')}", value)
                    there = cursor.next()
        except (lmdb.Error, OSError) as error:
            raise DataError(f"{self.folder / 'data.mdb'} cannot be read: {error}") from None

    def fingerprint(self) -> str:
        return f"{self.name} {self.split} {self.count} {fingerprint_files([self.folder / 'data.mdb'])}"


def _lmdb() -> Any:
    try:
        return importlib.import_module("lmdb")
    except ImportError:
        raise DataError("lsun is read with the package lmdb, which is not installed: `pip install lmdb`") from None


#: a process can open a folder only once at a time, so its readers share it; it is closed after the last one
_opened: weakref.WeakValueDictionary[Path, Any] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _environment(folder: Path) -> Any:
    """The LMDB environment of a folder. Raises DataError, or lmdb's errors."""
    with _lock:
        environment = _opened.get(folder.resolve())
        if environment is None:
            environment = _lmdb().open(
                str(folder), readonly=True, lock=False, readahead=False, create=False, max_spare_txns=4
            )
            _opened[folder.resolve()] = environment
    size = (folder / "data.mdb").stat().st_size
    promised = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < promised:  # reading what is not there would end the process by a signal
        raise DataError(f"{folder / 'data.mdb'} is cut off: it has {size:,} bytes and should have {promised:,}")
    return environment
