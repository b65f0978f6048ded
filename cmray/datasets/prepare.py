"""From a source to shards: decoded in parallel, written in order, gone on with after an interruption."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cmray.core.errors import DataError
from cmray.core.files import sha256_of
from cmray.core.locks import LOCK, locked
from cmray.core.version import __version__
from cmray.datasets.images import BadImage, ImageRule, Resolved, encoded, resolve, to_pixels
from cmray.datasets.location import Location, why
from cmray.datasets.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    PREPARING,
    ContentDigest,
    Levels,
    Manifest,
    Shard,
    group_rows,
    verify_shards,
)
from cmray.datasets.shards import Images, ShardReader
from cmray.datasets.source import Bad, ImageSource, require_text
from cmray.datasets.writer import ShardWriter

#: bytes of a shard file, about
SHARD_BYTES = 96 * 2**20
#: names and reasons of the images that were left out, one JSON object a line
SKIPPED = "skipped.jsonl"
#: what a process that was killed while writing may leave
_HALVES = (".shard-*.tmp", *(f".{name}.*" for name in (PREPARING, MANIFEST, SKIPPED)))


@dataclass(frozen=True)
class Piece:
    """Images of a range of the source, ready to be written."""

    start: int
    stop: int
    images: Images
    labels: np.ndarray | None
    levels: np.ndarray  # int64 [C, 256]
    bad: tuple[Bad, ...]


#: makes pieces of ranges, in the order of the ranges; where and how many at once is its own affair
Mapper = Callable[[Callable[[tuple[int, int]], Piece], Iterable[tuple[int, int]]], Iterator[Piece]]


def one_after_the_other(make: Callable[[tuple[int, int]], Piece], ranges: Iterable[tuple[int, int]]) -> Iterator[Piece]:
    """The simplest Mapper."""
    return map(make, ranges)


def make_piece(source: ImageSource, resolved: Resolved, span: tuple[int, int]) -> Piece:
    """Decodes images span[0] <= i < span[1] of a source. Raises DataError where a file of many images is damaged."""
    images, labels, bad = [], [], []
    levels = Levels(resolved.shape[0])
    for item in source.read(*span):
        if isinstance(item, Bad):
            bad.append(item)
            continue
        try:
            pixels = to_pixels(item, resolved)
        except BadImage as error:
            bad.append(Bad(item.where, str(error)))
            continue
        levels.update(pixels[None])
        images.append(pixels if resolved.encoding == "raw" else encoded(item, resolved, pixels))
        labels.append(item.label)
    rows: Images = images
    if resolved.encoding == "raw":
        rows = np.stack(images) if images else np.empty((0, *resolved.shape), np.uint8)
    return Piece(*span, rows, np.array(labels, np.int64) if source.classes else None, levels.counts, tuple(bad))


@dataclass
class Progress:
    """What a preparation has come to; written beside the shards after each."""

    request: dict[str, Any]
    position: int = 0  # of the source: everything before it is in the shards
    shards: list[Shard] = field(default_factory=list)
    levels: list[list[int]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def dump(self) -> bytes:
        shards = [shard.model_dump() for shard in self.shards]
        return json.dumps({**self.__dict__, "shards": shards}).encode()

    @classmethod
    def load(cls, text: bytes) -> Progress:
        raw = json.loads(text)
        return cls(**{**raw, "shards": [Shard.model_validate(shard) for shard in raw["shards"]]})


class Preparation:
    """Makes one prepared dataset.

    Args:
        source: the images.
        rule: what they are made into.
        out: the folder to make, local or in an object store.
        shards: number of files; None for files of about 96 MiB.
        max_bad: how many images may be left out; one more stops the preparation and names the first.

    Raises:
        DataError: `out` is occupied, or an interrupted preparation there was another one; bad images; a full disk.
    """

    def __init__(
        self, source: ImageSource, rule: ImageRule, out: str | Path | Location, shards: int | None, max_bad: int = 0
    ):
        self.source, self.out, self.max_bad = source, Location(out), max_bad
        self.count = len(source)
        if not self.count:
            raise DataError(f"{source.origin} holds no images")
        if shards is not None and not 1 <= shards <= self.count:
            raise DataError(f"--shards is {shards}; {source.name} has {self.count} images, so 1 to {self.count} work")
        require_text(source.origin, source.classes)
        self.resolved = resolve(rule, source)
        self.ends = None if shards is None else [round(self.count * (i + 1) / shards) for i in range(shards)]
        self.request = {
            "source": source.fingerprint(),
            "name": source.name,
            "split": source.split,
            "count": self.count,
            "rule": json.loads(self.resolved.rule.model_dump_json()),
            "shape": list(self.resolved.shape),
            "shards": shards,
        }
        self.progress = self._resumed()

    def _resumed(self) -> Progress:
        """What an earlier, interrupted run of the same preparation left; a new beginning where there was none."""
        names = _names(self.out)
        if names is None or not names:
            return Progress(self.request)
        if PREPARING not in names or MANIFEST in names:
            raise DataError(f"{self.out} exists and is not empty; name another folder, or remove it to prepare again")
        try:
            found = Progress.load(self.out.read(PREPARING))
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{self.out}/{PREPARING} is damaged; remove {self.out} to prepare again") from None
        for key, value in self.request.items():
            if found.request.get(key) != value:
                how = f"{_short(found.request.get(key))}, now {_short(value)}"
                if key == "source":
                    how = "its files' names, sizes or dates changed"
                raise DataError(
                    f"{self.out} holds an unfinished preparation with another {key} ({how}); remove it to prepare anew"
                )
        return found

    def run(self, mapper: Mapper = one_after_the_other, done: Callable[[int], None] = lambda _: None) -> Manifest:
        """Writes what is missing, verifies every shard and then the manifest.

        Args:
            mapper: runs the decoding.
            done: told how many images of the source are through.
        """
        try:
            self.out.make()
            folder = self.out.folder
            if folder is None:
                return self._run_in_store(mapper, done)
            with locked([folder], "wait for it, or give another --out"):
                self.progress = self._resumed()  # another process may have been here since
                try:
                    return self._run(mapper, done)
                finally:
                    self._tidy(folder)
        except (OSError, pa.ArrowException) as error:  # such as a full disk
            raise DataError(f"cannot write {self.out}: {why(error)}") from None

    def _run_in_store(self, mapper: Mapper, done: Callable[[int], None]) -> Manifest:
        try:
            return self._run(mapper, done)
        except BaseException:
            if not self.progress.shards:
                with suppress(OSError, pa.ArrowException):  # the first error is the one to tell
                    self.out.delete(PREPARING)
            raise

    def _tidy(self, folder: Path) -> None:
        """Removes what no later run needs: all of it, when no shard is whole.

        The lock, which this process holds, goes with the folder or when the dataset is finished: a process that then
        locks another file finds the manifest and stops.
        """
        for half in _HALVES:
            for path in folder.glob(half):
                path.unlink(missing_ok=True)
        if not self.progress.shards:
            (folder / PREPARING).unlink(missing_ok=True)
        empty = all(path.name == LOCK for path in folder.iterdir())
        if empty or (folder / MANIFEST).exists():
            (folder / LOCK).unlink(missing_ok=True)
        if empty:
            folder.rmdir()

    def _run(self, mapper: Mapper, done: Callable[[int], None]) -> Manifest:
        progress, source, resolved = self.progress, self.source, self.resolved
        self.out.write(PREPARING, progress.dump())
        digest = ContentDigest(resolved.shape, source.classes, resolved.encoding)
        self._reread(digest)
        done(progress.position)
        levels = Levels(np.array(progress.levels)) if progress.levels else Levels(resolved.shape[0])
        rows = group_rows(resolved.shape)
        with tempfile.TemporaryDirectory(prefix="cmray-") as elsewhere:
            folder = self.out.folder or Path(elsewhere)
            writer = ShardWriter(folder, rows, sum(s.rows for s in progress.shards))
            spans = [(at, min(at + rows, self.count)) for at in range(progress.position, self.count, rows)]
            try:
                for piece in mapper(partial(make_piece, source, resolved), self._cut(spans)):
                    self._count_bad(piece)
                    digest.update(piece.images, piece.labels)
                    levels.counts += piece.levels
                    writer.add(piece.images, piece.labels)
                    done(piece.stop)
                    if self._full(writer, piece.stop):
                        self._finish(writer, piece.stop, levels)
                if writer.rows:
                    self._finish(writer, self.count, levels)
            except BaseException:
                writer.abort()
                raise
        if not progress.shards:
            raise DataError(f"{source.origin} holds no image that can be used")
        return self._seal(digest, levels, rows)

    def _cut(self, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Ranges of the source that do not reach over the end of a shard."""
        if self.ends is None:
            return spans
        at = self.progress.position
        marks = sorted({stop for stop in (*self.ends, *(stop for _, stop in spans)) if stop > at})
        return list(zip([at, *marks], marks, strict=False))

    def _full(self, writer: ShardWriter, position: int) -> bool:
        if self.ends is not None:
            return position in self.ends
        return writer.bytes >= SHARD_BYTES

    def _finish(self, writer: ShardWriter, position: int, levels: Levels) -> None:
        """One more shard is whole."""
        progress = self.progress
        made = writer.close()
        if made is not None:
            path, rows = made
            name = f"shard-{len(progress.shards):05d}.parquet"
            shard = Shard(file=name, rows=rows, bytes=path.stat().st_size, sha256=sha256_of(path))
            self.out.put(path, name)
            progress.shards.append(shard)
        progress.position, progress.levels = position, levels.counts.tolist()
        self.out.write(PREPARING, progress.dump())

    def _reread(self, digest: ContentDigest) -> None:
        """Takes the content of shards that are there into the digest. Raises DataError when one changed."""
        if not self.progress.shards:
            return
        levels = Levels(np.array(self.progress.levels))
        self._read_back(self._manifest(digest, levels, group_rows(self.resolved.shape)), digest)

    def _read_back(self, manifest: Manifest, digest: ContentDigest) -> None:
        """Takes the content of all shards into a digest. Raises DataError when a file is not as it was written."""
        verify_shards(self.out, manifest, rehash=True)
        reader = ShardReader(self.out, manifest)
        for block in manifest.blocks():
            digest.update(*reader.stored(block))

    def _count_bad(self, piece: Piece) -> None:
        skipped = self.progress.skipped
        skipped.extend({"where": bad.where, "reason": bad.reason} for bad in piece.bad)
        if len(skipped) > self.max_bad:
            first = f"{skipped[0]['where']}: {skipped[0]['reason']}"
            if self.max_bad:
                raise DataError(f"more than --max-bad {self.max_bad} images cannot be used; the first is {first}")
            raise DataError(f"{first} (--max-bad N skips up to N such images and lists them)")

    def _manifest(self, digest: ContentDigest, levels: Levels, rows: int) -> Manifest:
        mean, std = levels.mean_std()
        channel_mean, channel_std = levels.by_channel()
        rule = self.resolved.rule
        return Manifest(
            format_version=FORMAT_VERSION,
            name=_text(self.source.name),
            split=_text(self.source.split),
            source=_text(self.source.origin),
            count=sum(shard.rows for shard in self.progress.shards),
            skipped=len(self.progress.skipped),
            shape=self.resolved.shape,
            classes=self.source.classes,
            encoding=self.resolved.encoding,
            crop=rule.crop,
            background=rule.background,
            group_rows=rows,
            mean=mean,
            std=std,
            channel_mean=channel_mean,
            channel_std=channel_std,
            digest=digest.hexdigest(),
            shards=tuple(self.progress.shards),
            cmray_version=__version__,
        )

    def _seal(self, digest: ContentDigest, levels: Levels, rows: int) -> Manifest:
        manifest = self._manifest(digest, levels, rows)
        found = ContentDigest(self.resolved.shape, self.source.classes, self.resolved.encoding)
        self._read_back(manifest, found)
        if found.hexdigest() != manifest.digest:
            raise DataError(
                f"{self.out}: the shards do not hold the images that were to be written; remove it and prepare again"
            )
        if self.progress.skipped:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.progress.skipped)  # names of any bytes
            self.out.write(SKIPPED, lines.encode())
        self.out.write(MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
        self.out.delete(PREPARING)
        return manifest


def _names(out: Location) -> list[str] | None:
    """What is in the folder besides the lock and leftovers, None when there is no such folder. Raises DataError."""
    try:
        if not out.exists():
            return None
        if not out.is_folder():
            raise DataError(f"{out} exists and is not empty; name another folder, or remove it to prepare again")
        return [name for name in out.names() if name != LOCK and not any(fnmatch(name, half) for half in _HALVES)]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {out}: {why(error)}") from None


def _text(name: str) -> str:
    """A name or path as text, even where its bytes are none."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."
