"""The storage folder in an object store: every machine works on a copy of its own, and this carries files between.

Code everywhere else reads and writes local paths. `mount` gives a URL its working copy and remembers it; `store_of`
tells whether a path lies in one. What is local alone never gets here further than that question.

    <cache>/<hash of the URL>/desk/      of drivers: plans, records, reports; checkpoints only as far as they are used
    <cache>/<hash of the URL>/bench/     of the processes that train and measure on this machine

The two are apart because each file of a trial has one writer at a time: a driver that refreshes its copy of an events
file must not replace the one that a trial on the same machine is writing.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import pyarrow as pa

from cmray.core.errors import DataError, StorageError
from cmray.datasets.location import Location, why
from cmray.engine.remote_store import Store, persist

#: names the folder for working copies
CACHE_VARIABLE = "CMRAY_CACHE"
#: seconds for which a read that training waits for is tried again
PATIENCE = 60.0


def cache_folder() -> Path:
    """CMRAY_CACHE, else cmray/storage in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "cmray" / "storage"


_mounted: dict[Path, Store] = {}


def mount(url: str, role: Literal["desk", "bench"] = "desk") -> Path:
    """The working copy of a storage URL, an absolute path; the path itself for a file:// URL or a path.

    Raises StorageError when the store cannot be opened.
    """
    if "://" not in url:
        return Path(url).expanduser().absolute()
    try:
        location = Location(url)
    except DataError as error:  # it does not repeat the URL
        raise StorageError(str(error)) from None
    try:
        local = location.folder
    except (DataError, OSError, pa.ArrowException) as error:
        raise StorageError(f"storage {url} cannot be opened: {' '.join(why(error).split())}") from None
    if local is not None:
        return local
    root = cache_folder() / hashlib.sha256(location.name.encode()).hexdigest()[:16] / role
    if root not in _mounted:
        store = Store(location.name, root)
        if role == "desk":
            store.check()
        _mounted[root] = store
    return root


def store_of(path: Path) -> Store | None:
    """The store whose working copy holds a path; None for what is local alone."""
    for root, store in _mounted.items():
        if path == root or root in path.parents:
            return store
    return None


def shown(storage: Path) -> str:
    """What a person calls the storage: its URL, or its path."""
    store = store_of(storage)
    return store.url if store is not None else str(storage)


def fetch_checkpoint(folder: Path) -> None:
    """Brings a checkpoint of a working copy here, unless it is. Raises StorageError, CheckpointError."""
    store = store_of(folder) if _mounted else None
    if store is not None:
        persist(lambda: store.get_checkpoint(folder), PATIENCE)


def fetch_folder(folder: Path, last: str) -> None:
    """Brings a folder that is written once here, as far as the store has it."""
    store = store_of(folder) if _mounted else None
    if store is not None:
        store.get_folder(folder, last)


def offer_folder(folder: Path, last: str) -> None:
    """Copies a folder that is written once to the store."""
    store = store_of(folder) if _mounted else None
    if store is not None:
        store.put_folder(folder, last)
