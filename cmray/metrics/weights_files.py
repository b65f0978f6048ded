"""Files of weights that others published: where they are looked for, what they are named by, how they are read.

They are never downloaded: a file that is missing is one line that says which, how large, and how to provide it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from cmray.core.errors import DataError, MissingWeightsError
from cmray.core.files import write_atomic

#: bytes from which on a file is hashed once for all processes of a machine, not once in each
NOTED_FROM = 2**27


def _absolute(value: str | None) -> str | None:
    # workers may run in another folder
    try:
        return None if value is None else str(Path(value).expanduser().absolute())
    except RuntimeError as error:  # ~someone without a home
        raise ValueError(str(error)) from None


#: a field that names a file; its content counts, wherever it lies
FilePath = Annotated[str | None, Field(min_length=1, json_schema_extra={"identity": False}), AfterValidator(_absolute)]
#: a field that is filled in with the SHA-256 of that file, or checked when given
FileSha256 = Annotated[str | None, Field(pattern="^[0-9a-f]{64}$")]


def cache_folder() -> Path:
    """Where cmray looks for weights: <XDG_CACHE_HOME or ~/.cache>/cmray/weights."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "cmray" / "weights"


def torch_cache() -> Path:
    """Where torch.hub keeps weights, below $TORCH_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def only_cache() -> tuple[Path, ...]:
    return (cache_folder(),)


@dataclass(frozen=True)
class WeightsFile:
    """One published file.

    Args:
        user: who needs it, as the beginning of a sentence.
        name: what the file is called.
        megabytes: its size.
        source: where people get it.
        option: the field that names a copy elsewhere.
        folders: where it is looked for, in this order; the last one is what people are told to copy it to.
    """

    user: str
    name: str
    megabytes: int
    source: str
    option: str
    folders: Callable[[], tuple[Path, ...]] = field(default=only_cache)

    def path(self, given: str | None = None) -> Path:
        """`given`, or the first copy in the usual folders, or where one would be put."""
        if given:
            return Path(given)
        places = [folder / self.name for folder in self.folders()]
        return next((place for place in places if place.is_file()), places[-1])

    def how_to_get(self) -> str:
        """What to do about a missing file, as a clause."""
        return (
            f"get {self.source} ({self.megabytes} MB) and copy it to {self.folders()[-1]}, "
            f"or name a copy with {self.option}: PATH"
        )

    def check_readable(self, path: Path) -> None:
        """Raises DataError unless `path` can be opened."""
        try:
            with path.open("rb"):
                pass
        except (FileNotFoundError, NotADirectoryError):
            folders = self.folders()
            usual = path in [folder / self.name for folder in folders]
            where = f"looked in {', '.join(map(str, folders))}" if usual else f"looked for {path}"
            raise MissingWeightsError(
                f"{self.user} needs the file {self.name}, which is not here ({where}); {self.how_to_get()}", self.name
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{self.user} cannot read its weights {path}: {reason_of(error)}") from None

    def check_content(self, path: Path, expected: str | None) -> str:
        """SHA-256 of a file that is there. Raises DataError when it is not `expected`, or cannot be read."""
        self.check_readable(path)
        found = content_of(path)
        if found is None:
            raise DataError(f"{self.user} cannot read its weights {path}: it is not a file")
        if expected not in (None, found):
            raise DataError(f"{self.option}_sha256 is {expected}, but {path} has {found}")
        return found

    def damaged(self, path: Path) -> DataError:
        return DataError(
            f"{self.user} cannot read its weights {path}: damaged, or not a file of tensors only, and code in a "
            f"file is never run; {self.how_to_get()}"
        )

    def read_tensors(self, path: Path) -> dict[str, Any]:
        """A file that `torch.save` wrote, on the CPU; {} where it holds no dict. Raises DataError."""
        self.check_readable(path)
        try:
            # mapped, so that a look at the shapes does not read all of it; files of old torch versions cannot be
            mapped = zipfile.is_zipfile(path)
            with warnings.catch_warnings(action="ignore"):  # about pickles that torch did not write
                state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception:  # a damaged pickle can raise anything
            raise self.damaged(path) from None
        return state if isinstance(state, dict) else {}


def fill(network: nn.Module, state: Mapping[str, Any], begins: str) -> None:
    """Copies tensors into a network that was built without memory, by name; other entries are not looked at.

    Args:
        begins: how the error begins, such as "extractor 'clip': FILE does not hold the network: ".

    Raises:
        DataError: a tensor is missing or has another shape.
    """
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    for name, empty in wanted.items():
        value = state.get(name)
        if not isinstance(value, Tensor) or value.shape != empty.shape:
            has = f"one of {list(value.shape)}" if isinstance(value, Tensor) else "none"
            raise DataError(f"{begins}{name} of shape {list(empty.shape)} is needed, it has {has}")
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name in wanted:
                value.copy_(state[name])
            else:
                value.zero_()


def reason_of(error: BaseException) -> str:
    """Why a file could not be used, in one line."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def content_of(path: Path) -> str | None:
    """SHA-256 of a file in hex; None where no file can be read. Read once for a state of the file."""
    try:
        if not path.is_file():
            return None
        state = path.stat()
        return _sha256(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=32)
def _sha256(path: Path, *state: int) -> str:
    return _hash(path) if state[0] < NOTED_FROM else once_per_machine(path, state)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def once_per_machine(path: Path, state: tuple[int, ...]) -> str:
    """SHA-256 of a file, noted in the cache folder: workers that start together wait for the first to read it."""
    folder = cache_folder() / "seen"
    seen = [str(path.absolute()), *state]
    note = folder / f"{hashlib.sha256(repr(seen).encode()).hexdigest()[:32]}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with note.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                said = json.loads(note.read_text())
                if said["file"] == seen:
                    return said["sha256"]
            except (OSError, ValueError, KeyError, TypeError):
                pass  # never read in this state, or not understood
            found = _hash(path)
            write_atomic(note, json.dumps({"file": seen, "sha256": found}))
            return found
    except OSError:  # a cache that cannot be written, or a file system without locks
        return _hash(path)
