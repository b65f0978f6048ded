"""Makes what a driver speaks of at hand where it is wanted, when the storage is in an object store.

A driver names files by the paths of its own working copy. A worker has a copy of its own, perhaps on another machine:
`located` and `Packed` put its paths in the place of the driver's. Where the storage is a folder, nothing changes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmray.cluster.spec import TrialSpec
from cmray.core.errors import StorageError
from cmray.core.files import write_atomic
from cmray.datasets.location import Location
from cmray.datasets.manifest import MANIFEST, read_manifest
from cmray.datasets.mapped import MappedDataset, map_shards
from cmray.engine.remote import PATIENCE, fetch_checkpoint, mount, store_of
from cmray.engine.remote_store import Store, persist
from cmray.engine.remote_trial import RemoteTrial, surely_send_notes
from cmray.engine.session import Session, from_rank0


def for_nodes(place: Location) -> Location:
    """A dataset's folder as any machine finds it."""
    store = store_of(place.folder) if place.folder is not None else None
    return place if store is None or place.folder is None else Location(store.url_of(store.name_of(place.folder)))


def located(spec: TrialSpec) -> TrialSpec:
    """The trial with this machine's paths."""
    if spec.store is None:
        return spec
    here = mount(spec.store.url, "bench")
    move = _Moved(spec.store.root, here)
    return replace(spec, folder=move(spec.folder), teacher=move(spec.teacher), store=replace(spec.store, root=here))


@contextmanager
def noted(spec: TrialSpec) -> Iterator[TrialSpec]:
    """The trial with this machine's paths; what is written about its failures meanwhile is sent at the end."""
    spec = located(spec)
    try:
        yield spec
    finally:
        if spec.store is not None:
            surely_send_notes(spec.store, Path(spec.folder))


@contextmanager
def synced(spec: TrialSpec, session: Session, warn: Callable[[str], None]) -> Iterator[TrialSpec]:
    """The trial with this machine's paths and its newest checkpoint, while it trains; what it makes is sent.

    All ranks of a run enter it together; rank 0 sends. Raises StorageError when the store cannot be reached.
    """
    if spec.store is None:
        yield spec
        return
    spec = located(spec)
    assert spec.store is not None
    store = store_of(Path(spec.folder))
    assert store is not None
    if session.rank:
        name = from_rank0(None, session)
        if name is not None:
            fetch_checkpoint(Path(spec.folder) / "checkpoints" / str(name))
        yield spec
        return
    trial = RemoteTrial(store, Path(spec.folder), warn)
    Path(spec.folder).mkdir(parents=True, exist_ok=True)
    newest = persist(trial.begin, PATIENCE, warn)
    from_rank0(newest, session)
    trial.start()
    try:
        yield spec
    except BaseException:
        with suppress(StorageError):  # what is not sent now is sent when the trial goes on
            trial.end(patience=10)
        raise
    trial.end()


def scratch_of(spec: TrialSpec, shared: Path) -> Path:
    """A folder for Ray's own bookkeeping: `shared` where machines share one, else this machine's."""
    return shared if spec.store is None else spec.store.root / ".ray"


def mapped_here(spec: TrialSpec, data: MappedDataset) -> MappedDataset:
    """The images mapped from a file of this machine."""
    if spec.store is None:
        return data
    root = mount(spec.store.url, "bench")
    config = spec.config.data
    place = Location(config.path or store_at(root).url_of(f"datasets/{config.name}"))
    return map_shards(place, read_manifest(place), root / "mapped")


def store_at(root: Path) -> Store:
    store = store_of(root)
    assert store is not None
    return store


@dataclass(frozen=True)
class _Moved:
    """Puts one folder in the place of another, in paths and in all that holds some.

    Args:
        own: the place of what is not fetched once for a whole machine.
    """

    old: Path
    new: Path
    own: Path | None = None

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            if not value.startswith(f"{self.old}/"):
                return value
            name = value[len(str(self.old)) + 1 :]
            return str((self.new if self.own is None or _shared(name) else self.own) / name)
        if isinstance(value, tuple | list):
            return type(value)(self(one) for one in value)
        if isinstance(value, dict):
            return {key: self(one) for key, one in value.items()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: self(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
            return replace(value, **fields)
        return value


def _shared(name: str) -> bool:
    """Whether a machine fetches it once from the store: what is written once, and large."""
    return name.startswith("datasets/") or "/checkpoints/" in name


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (s for one in value.values() for s in _strings(one))
    elif isinstance(value, tuple | list):
        yield from (s for one in value for s in _strings(one))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (s for f in dataclasses.fields(value) for s in _strings(getattr(value, f.name)))


@dataclass(frozen=True)
class Packed:
    """A call of an evaluator whose arguments name files of a driver's working copy.

    Small files that the driver has (kept parts, kept samples) travel with the call, those that it makes travel back;
    meanwhile they are in a folder of the call's own, for others may be at work on the same. Checkpoints and datasets
    are fetched from the store, once a machine.

    Args:
        files: name in the store -> how to get at the bytes.
    """

    store: Store  # with the driver's root
    method: str
    arguments: tuple[Any, ...]
    files: dict[str, Any]

    def run(self, evaluator: Any, bytes_of: Callable[[Any], bytes]) -> tuple[Any, dict[str, bytes]]:
        """The result, and the files that the call has made, by their names in the store. For the worker."""
        here = mount(self.store.url, "bench")
        store, names = store_at(here), sorted({store_name(s, self.store.root) for s in _strings(self.arguments)} - {""})
        for name in names:
            if name.startswith("datasets/"):
                store.get_folder(here / name, MANIFEST)
        calls = here / ".calls"
        calls.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=calls) as folder:
            own = Path(folder)
            for name in names:
                place = (here if _shared(name) else own) / name
                if name in self.files and not place.is_file():
                    write_atomic(place, bytes_of(self.files[name]))
            result = getattr(evaluator, self.method)(*_Moved(self.store.root, here, own)(self.arguments))
            made = [name for name in names if name not in self.files and (own / name).is_file()]
            return result, {name: (own / name).read_bytes() for name in made}

    def keep(self, found: dict[str, bytes]) -> None:
        """Writes the files that a call has made into the driver's working copy."""
        for name, data in found.items():
            write_atomic(self.store.root / name, data)


def store_name(text: str, root: Path) -> str:
    """The name in the store of a path below `root`; "" for other texts."""
    return text[len(str(root)) + 1 :] if text.startswith(f"{root}/") else ""


def pack(method: str, arguments: tuple[Any, ...], send: Callable[[Path], Any]) -> Packed | None:
    """A call, if its arguments name files of a working copy; None otherwise.

    Args:
        send: makes the bytes of a file available to workers.
    """
    for text in _strings(arguments):
        store = store_of(Path(text)) if text.startswith("/") else None
        if store is not None:
            paths = {Path(s) for s in _strings(arguments) if s.startswith(f"{store.root}/")}
            return Packed(store, method, arguments, {store.name_of(p): send(p) for p in paths if p.is_file()})
    return None
