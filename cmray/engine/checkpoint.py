"""Checkpoints on disk: written whole, verified when read, a damaged one skipped by name."""

from __future__ import annotations

import contextlib
import errno
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmray.config.checkpoint_facts import META, CheckpointFacts, read_checkpoint_facts
from cmray.core.errors import CheckpointError, StorageError
from cmray.core.files import beside, sha256_of, synced, write_atomic

#: part name -> its tensors; each part is one safetensors file
Parts = Mapping[str, Mapping[str, Tensor]]


def save_checkpoint(folder: Path, parts: Parts, facts: CheckpointFacts, keep: int) -> Path:
    """Writes <folder>/step-NNNNNNNN, N the digits of the step, and removes all but the newest `keep`.

    Everything is written beside its place and renamed at the end, so a checkpoint is there whole or not at all.
    `facts.files` is filled in here. Raises StorageError when it cannot be written, as on a full disk; those that are
    there stay.
    """
    final = folder / f"step-{facts.step:08d}"
    try:
        for stale in folder.glob(".step-*"):  # left by a process that was killed here; a trial has one writer
            shutil.rmtree(stale, ignore_errors=True)
        with beside(final) as tmp:
            tmp.mkdir()
            files = {}
            for name, tensors in parts.items():
                save_file(dict(tensors), tmp / name)
                with (tmp / name).open("rb") as file:
                    synced(file)
                files[name] = sha256_of(tmp / name)
            facts = facts.model_copy(update={"files": files})
            write_atomic(tmp / META, facts.model_dump_json(indent=1))
            if final.exists():  # a damaged one that was skipped, or the same step once more
                _remove(final)
    except (OSError, SafetensorError) as error:
        raise _unwritten(folder, facts.step, error) from error
    for _, old in checkpoints(folder)[keep:]:
        with contextlib.suppress(OSError):
            _remove(old)
    return final


def _remove(path: Path) -> None:
    """Removes a checkpoint whole: a process that is killed here leaves nothing that looks like a damaged one."""
    gone = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _unwritten(folder: Path, step: int, error: OSError | SafetensorError) -> StorageError:
    newest = next(iter(checkpoints(folder)), None)
    kept = f"that of step {newest[0].step:,} is kept" if newest else "there is none before it"
    reason, free = error.strerror if isinstance(error, OSError) else error, ""
    if not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = f" ({shutil.disk_usage(folder).free / 2**20:,.0f} MiB free)"
    return StorageError(
        f"the checkpoint of step {step:,} cannot be written to {folder}: {reason}{free}; {kept}, and the same command "
        "goes on from there once this is mended"
    )


def checkpoints(folder: Path, warn: Callable[[str], None] = lambda _: None) -> list[tuple[CheckpointFacts, Path]]:
    """All checkpoints with a readable manifest, the newest step first. Others are named through `warn`."""
    found = []
    for path in sorted(folder.glob("step-*")) if folder.is_dir() else []:
        try:
            found.append((read_checkpoint_facts(path), path))
        except CheckpointError as error:
            warn(f"skipped a damaged checkpoint: {error}")
    return sorted(found, key=lambda item: item[0].step, reverse=True)


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> tuple[CheckpointFacts, Path] | None:
    """The newest checkpoint whose files are all what its manifest says; damaged ones are named through `warn`."""
    for facts, path in checkpoints(folder, warn):
        try:
            verify(facts, path)
        except CheckpointError as error:
            warn(f"skipped a damaged checkpoint: {error}")
            continue
        return facts, path
    return None


def verify(facts: CheckpointFacts, path: Path) -> None:
    """Raises CheckpointError when a part is missing or its content changed."""
    for name, digest in facts.files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path} lacks {name}, which its manifest lists")
        if sha256_of(path / name) != digest:
            raise CheckpointError(f"{path / name} changed after it was written: its SHA-256 is not the manifest's")


def load_part(path: Path, name: str, digest: str) -> dict[str, Tensor]:
    """The tensors of one verified part, on the CPU. Raises CheckpointError."""
    try:
        if sha256_of(path / name) != digest:
            raise CheckpointError(
                f"{path / name} changed after it was written: its SHA-256 is not the manifest's; remove {path} and "
                f"train again to replace it"
            )
        return load_file(path / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path / name} cannot be read: {error}") from None
