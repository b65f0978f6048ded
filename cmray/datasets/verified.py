"""Hashes every shard before a dataset is first used, and again only when files have changed since."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from cmray.core.errors import DataError
from cmray.core.files import write_atomic
from cmray.datasets.location import Location, why
from cmray.datasets.manifest import Manifest, verify_shards

#: files that are hashed at once; hashing runs beside the interpreter
THREADS = 4


def verify_once(folder: str | Path | Location, manifest: Manifest, notes: Path) -> None:
    """Verifies all shards by their SHA-256, unless `notes` says that they were verified as they are now.

    What changes a shard changes its size or its time. Bits that flip by themselves are found when they are read:
    every page has a checksum.

    Args:
        notes: a folder for what was verified; made when missing.

    Raises:
        DataError: a shard is missing or changed.
    """
    place = Location(folder)
    path = notes / f"{manifest.digest[:32]}.json"
    try:
        now = {"place": str(place), "shards": [[s.file, s.sha256, *place.stamp(s.file)] for s in manifest.shards]}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{place} cannot be read: {why(error)}") from None
    try:
        if json.loads(path.read_text()) == now:
            return
    except (OSError, ValueError):
        pass  # never verified, or not understood
    verify_shards(place, manifest, rehash=False)  # missing files first: quick to tell
    with ThreadPoolExecutor(THREADS) as pool:
        each = [manifest.model_copy(update={"shards": (shard,)}) for shard in manifest.shards]
        list(pool.map(lambda one: verify_shards(place, one, rehash=True), each))
    write_atomic(path, json.dumps(now))
