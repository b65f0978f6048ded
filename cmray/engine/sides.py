"""What an extractor says of images that are there already, computed once and kept under <storage>/reference/."""

from __future__ import annotations

import functools
import json
import re
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmray.config.identity import content_hash
from cmray.core.errors import StorageError
from cmray.core.files import sha256_of, write_atomic
from cmray.core.protocol import REFERENCE_BLOCK
from cmray.engine.evaluator import InlinePool, Pool, image_chunks
from cmray.engine.images import ImageSet, verify_images
from cmray.engine.measure import Wanted, groups_in, side
from cmray.engine.parts import InUse, folder_for, read_arrays, write_arrays
from cmray.engine.pieces import cut, joined
from cmray.engine.remote import fetch_folder, offer_folder
from cmray.metrics.extractors import extractors
from cmray.metrics.measures.base import Sample
from cmray.metrics.statistics import FeatureStatistics

#: a need that is no extractor's: the statistics of blocks, of which intervals are made
BLOCKS = "blocks"
#: written last, with the hashes of the others
SIDE = "side.json"
#: another process that wants less of the same images may write its manifest over ours
TRIES = 3
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExtractorFacts:
    """What is known of an extractor without keeping its network."""

    name: str
    sha256: str
    dim: int
    outputs: frozenset[str]
    spatial_dim: int | None
    resizer: str
    note: str  # what it does to images of the shape asked for


def extractor_facts(extractor: Any, shape: Sequence[int]) -> ExtractorFacts:
    """By a registered name or a mapping. Raises DataError when images of (C, H, W) = `shape` do not fit it."""
    return _facts(json.dumps(extractor, sort_keys=True, default=str), tuple(int(n) for n in shape))


@functools.cache
def _facts(extractor: str, shape: tuple[int, ...]) -> ExtractorFacts:
    built = extractors.parse(json.loads(extractor)).build(torch.device("cpu"))  # let go of: who measures builds its own
    built.check(shape)
    note = built.note(shape) or ""
    return ExtractorFacts(
        built.name, built.sha256, built.dim, frozenset(built.outputs), built.spatial_dim, built.resizer, note
    )


def described(
    images: ImageSet,
    extractor: Any,
    facts: ExtractorFacts,
    storage: Path,
    pool: Pool | None = None,
    needs: Collection[str] = (),
    progress: Progress = lambda *_: None,
) -> Sample:
    """What an extractor says of all images, in blocks of 256 from first to last; computed once, then read.

    <storage>/reference/NAME-EXTRACTOR-KEY/ holds statistics.npz, blocks.npz, features.npy and probabilities.npy as far
    as they were needed, and side.json with their hashes. A folder that is damaged is made again. 50,000 images of 2,048
    features take 32 MiB, 391 MiB more with the features themselves and 800 MiB more with the statistics of blocks,
    which a reference does not need.

    The blocks and their order are fixed, so the bits do not depend on the pool's size. Another processor's
    convolutions may round differently: compute a reference once and carry it to where it is needed.
    """
    key = content_hash([images.digest, images.count, images.name, images.split, facts.sha256, facts.resizer])[:16]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{images.name}-{facts.name}")[:80]
    folder = storage / "reference" / f"{stem}-{key}"
    fetch_folder(folder, SIDE)
    found = _read(folder, set(needs))
    for _ in range(TRIES):
        if found is not None:
            return found
        verify_images(images, storage)
        also = set(needs) | _held(folder)
        wanted = Wanted(f"{facts.name}-{facts.sha256[:12]}", extractor, tuple(sorted(also - {BLOCKS})))
        keep = folder_for(folder, "parts", wanted.arrays())
        own = pool or InlinePool(torch.device("cpu"))
        chunks = cut(image_chunks(images, [wanted], REFERENCE_BLOCK, keep), own.size)
        tasks = [piece for pieces in chunks for piece in pieces]
        done = 0

        def got(*_: Any, all_chunks: int = len(tasks)) -> None:
            nonlocal done
            done += 1
            progress(f"Describing {images.name} with {facts.name}", done, all_chunks)

        with InUse([keep]) as used:
            own.run([("describe", (task,)) for task in tasks], got)
            parts = (joined(read_arrays(Path(str(piece.keep))) for piece in pieces) for pieces in chunks)
            _write(folder, side(parts, wanted), BLOCKS in also)
            offer_folder(folder, SIDE)
            used.forget(keep)
        found = _read(folder, set(needs))
    if found is None:
        raise StorageError(f"{folder} was written, but does not hold what was written; is the disk sound?")
    return found


def _held(folder: Path) -> set[str]:
    """What a folder holds beside statistics, so that adding to it loses nothing."""
    files = {"features": "features.npy", "probabilities": "probabilities.npy", BLOCKS: "blocks.npz"}
    names = {name for name, file in files.items() if (folder / file).is_file()}
    try:
        manifest = json.loads((folder / SIDE).read_text())
        return names | ({"spatial"} if manifest.get("spatial") else set())
    except (OSError, ValueError):
        return names


def _write(folder: Path, sample: Sample, blocks: bool) -> None:
    arrays = dict(sample.statistics.to_arrays())
    if sample.spatial is not None:
        arrays |= {f"spatial_{name}": array for name, array in sample.spatial.to_arrays().items()}
    write_arrays(folder / "statistics.npz", arrays)
    files = ["statistics.npz"]
    if blocks:
        write_arrays(folder / "blocks.npz", _stacked(sample.blocks, "") | _stacked(sample.spatial_blocks, "spatial_"))
        files.append("blocks.npz")
    for name in ("features", "probabilities"):
        rows = getattr(sample, name)
        if rows is not None:
            tmp = folder / f".{name}.{uuid.uuid4().hex}"
            with tmp.open("wb") as file:
                np.save(file, rows)
            tmp.replace(folder / f"{name}.npy")
            files.append(f"{name}.npy")
    manifest = {
        "n": sample.n,
        "sha256": sample.statistics.sha256(),
        "spatial": sample.spatial is not None,
        "files": {name: sha256_of(folder / name) for name in files},
    }
    write_atomic(folder / SIDE, json.dumps(manifest, indent=1))


def _read(folder: Path, needs: set[str]) -> Sample | None:
    """None when it is not there, lacks something, or is not what its hashes say."""
    try:
        manifest = json.loads((folder / SIDE).read_text())
        files: dict[str, str] = manifest["files"]
        rows = {name: f"{name}.npy" for name in ("features", "probabilities") if name in needs}
        used = {"statistics.npz", *rows.values(), *(["blocks.npz"] if BLOCKS in needs else [])}
        if not used <= files.keys() or ("spatial" in needs and not manifest["spatial"]):
            return None
        if any(sha256_of(folder / name) != files[name] for name in used):
            return None
        arrays = read_arrays(folder / "statistics.npz")
        parts = read_arrays(folder / "blocks.npz") if BLOCKS in needs else {}
        loaded = {name: np.load(folder / file, mmap_mode="r", allow_pickle=False) for name, file in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, StorageError):
        return None
    statistics = FeatureStatistics.from_arrays(arrays)
    spatial = None
    if "spatial" in needs:
        spatial = FeatureStatistics.from_arrays({name: arrays[f"spatial_{name}"] for name in ("n", "sum", "outer")})
    return Sample(
        statistics.n, groups_in(parts) or [statistics], statistics, loaded.get("features"), loaded.get("probabilities"),
        None if spatial is None else groups_in(parts, "spatial_") or [spatial], spatial,
    )  # fmt: skip


def _stacked(blocks: Sequence[FeatureStatistics] | None, prefix: str) -> dict[str, np.ndarray]:
    if not blocks:
        return {}
    arrays = [block.to_arrays() for block in blocks]
    return {f"{prefix}{name}": np.stack([a[name] for a in arrays]) for name in ("n", "sum", "outer")}
