"""A driver's working copy and the store it stands for, kept alike while an experiment is worked on."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cmray.core.errors import StorageError
from cmray.core.files import write_atomic
from cmray.core.lease import Lease
from cmray.core.locks import locked, waited_for
from cmray.engine.remote import store_of
from cmray.engine.remote_store import Stamp, Store, hidden, persist

#: seconds between two exchanges while trials run; each lists the experiment's objects, 1,000 in a request
EVERY = 2.0
#: seconds for which an exchange that must succeed is tried again
PATIENCE = 120.0
LOG = "log.txt"
#: what a trial's own process writes; where both sides changed one, the store's is the newer
_OF_TRIALS = ("events.jsonl", "result.json", LOG)


def exchanged(name: str) -> bool:
    """Whether drivers keep a copy of a file: all small ones of an experiment, and of checkpoints the manifests."""
    parts = name.split("/")
    if hidden(name) or len(parts) < 2:
        return False
    return "checkpoints" not in parts[:-1] or parts[-1] == "meta.json"


def _of_trial(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] in _OF_TRIALS or "checkpoints" in parts or "errors" in parts


def more_lines(own: bytes, other: bytes) -> bytes:
    """A log with the lines of both, its own first: others append to theirs meanwhile."""
    known = set(own.splitlines())
    new = [line for line in other.splitlines() if line not in known]
    return own + b"".join(line + b"\n" for line in new)


class Exchange:
    """Carries what changed since the last time, either way; deletions too.

    What was alike last time stands in <working copy>/.alike/EXPERIMENT.json, so that it is known who changed a file,
    also after a driver was killed. Without that note the store's files are taken.

    Args:
        names: of the experiments.
    """

    def __init__(self, store: Store, names: Collection[str]):
        self.store, self.names = store, sorted(set(names))
        self._turn = threading.Lock()

    def now(self, push: bool = True) -> None:
        """Raises StorageError; what was carried until then stays carried.

        Args:
            push: False only fetches.
        """
        with self._turn:
            for name in self.names:
                self._experiment(name, push)

    def _experiment(self, name: str, push: bool) -> None:
        note = self.store.root / ".alike" / f"{name}.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        with waited_for(note.with_suffix(".lock")):  # commands on this machine share the copy
            alike = _read_note(note)
            before = dict(alike)
            try:
                self._carry(name, alike, push)
            finally:
                if alike != before:
                    write_atomic(note, json.dumps(alike))

    def _carry(self, name: str, alike: dict[str, tuple[Stamp | None, Stamp | None]], push: bool) -> None:
        there = {n: s for n, s in self.store.listing(name).items() if exchanged(n)}
        here = {n: s for n, s in _files(self.store.root, name) if exchanged(n)}
        fetch, send = [], []
        for file in sorted({*there, *here, *alike}):
            known = file in alike
            was_here, was_there = alike.get(file, (None, None))
            changed_here, changed_there = here.get(file) != was_here, there.get(file) != was_there
            if changed_there and (not changed_here or _of_trial(file) or not known or not push):
                fetch.append(file)
            elif changed_here and push:
                send.append(file)
        # results come after what they speak of
        self.store.many(lambda f: self._fetch(f, here.get(f), there.get(f), alike), [f for f in fetch if not _late(f)])
        self.store.many(lambda f: self._fetch(f, here.get(f), there.get(f), alike), [f for f in fetch if _late(f)])
        self.store.many(lambda f: self._send(f, alike), send)

    def _fetch(self, file: str, here: Stamp | None, there: Stamp | None, alike: dict) -> None:
        path = self.store.root / file
        if there is None:
            path.unlink(missing_ok=True)
            alike.pop(file, None)
            return
        if here is not None and file.endswith(f"/{LOG}"):
            merged = more_lines(path.read_bytes(), self.store.read(file) or b"")
            write_atomic(path, merged.decode(errors="replace"))
            alike[file] = (None, there)  # sent back if it has more
            if merged == self.store.read(file):
                alike[file] = (_stamp(path), there)
            return
        try:
            self.store.get(file, path)
        except StorageError:
            if self.store.stamp(file) is None:  # removed since it was listed
                return
            raise
        alike[file] = (_stamp(path), there)

    def _send(self, file: str, alike: dict) -> None:
        path = self.store.root / file
        if file.endswith(f"/{LOG}") and path.is_file():
            merged = more_lines(path.read_bytes(), self.store.read(file) or b"")
            if merged != path.read_bytes():
                write_atomic(path, merged.decode(errors="replace"))
        here = _stamp(path)
        if here is None:
            self.store.delete(file)
            alike.pop(file, None)
            return
        try:
            self.store.put(path, file)
        except FileNotFoundError:  # removed since it was listed
            return
        alike[file] = (here, self.store.stamp(file))

    def surely(self, patience: float = PATIENCE, tell: Callable[[str], None] = lambda _: None) -> None:
        """An exchange that outlives a store that is away for a while. Raises StorageError when it stays away.

        Args:
            tell: is told once that it waits.
        """
        persist(self.now, patience, tell)


def _late(file: str) -> bool:
    return file.endswith(("/result.json", "/error.txt"))


def _files(root: Path, under: str) -> Iterator[tuple[str, Stamp]]:
    for folder, folders, files in os.walk(root / under):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in files:
            stamp = _stamp(Path(folder) / file)
            if stamp is not None:
                yield Path(folder, file).relative_to(root).as_posix(), stamp


def _stamp(path: Path) -> Stamp | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _read_note(path: Path) -> dict[str, tuple[Stamp | None, Stamp | None]]:
    try:
        plain = json.loads(path.read_text())
        return {n: (tuple(a) if a else None, tuple(b) if b else None) for n, (a, b) in plain.items()}
    except (OSError, ValueError, TypeError):
        return {}


def refresh(storage: Path, names: Collection[str]) -> None:
    """Fetches what the store has of experiments, with those that their plans take teachers from. Nothing where the
    storage is local. Raises StorageError."""
    store = store_of(storage)
    if store is None:
        return
    Exchange(store, names).now(push=False)
    others = {other for name in names for other in _named_in(storage / name / "experiment.json")} - set(names)
    if others:
        Exchange(store, others).now(push=False)


def _named_in(plan: Path) -> set[str]:
    try:
        return {str(entry["experiment"]) for entry in json.loads(plan.read_text())["trials"]}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged, which its reader says
        return set()


def refresh_all(storage: Path) -> None:
    """`refresh` of every experiment that the store holds."""
    store = store_of(storage)
    if store is not None:
        names = {name.split("/")[0] for name in store.listing() if "/" in name and not hidden(name)}
        refresh(storage, names - {"datasets", "reference"})


def share(folders: Sequence[Path]) -> None:
    """Exchanges the experiments of these folders once, as they have new records. Nothing where they are local alone.
    Raises StorageError."""
    for folder in folders:
        store = store_of(folder)
        if store is not None:
            Exchange(store, [store.name_of(folder).split("/")[0]]).surely()


@contextmanager
def held(
    storage: Path,
    folders: Sequence[Path],
    names: Collection[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Callable[[], None]]:
    """Holds folders for this process, as `locked` does; and where the storage is a working copy, holds them in the
    store too and exchanges experiments in the background until the end. Gives a function that exchanges them now.

    Args:
        names: of the experiments that are exchanged, beside those of the folders.
        tell: is told of what takes long or goes wrong without ending anything.

    Raises:
        StorageError: somebody else holds one, or it cannot be written.
    """
    store = store_of(storage)
    with ExitStack() as stack:
        stack.enter_context(locked(folders))
        if store is None:
            yield lambda: None
            return
        store.check_writable()
        leases = [stack.enter_context(Lease(store, store.name_of(f)).held(tell)) for f in sorted(set(folders))]
        exchange = Exchange(store, {*names, *(store.name_of(f).split("/")[0] for f in folders)})

        def now() -> None:
            for lease in leases:
                lease.check()
            exchange.surely(tell=tell)

        now()
        ended = threading.Event()
        thread = threading.Thread(target=_regularly, args=(exchange, leases, ended, tell), daemon=True)
        thread.start()
        try:
            yield now
        except BaseException:
            _stop(ended, thread)
            with suppress(StorageError):  # what is not sent now is sent when the experiment goes on
                exchange.surely(patience=10)
            raise
        _stop(ended, thread)
        now()


def _stop(ended: threading.Event, thread: threading.Thread) -> None:
    ended.set()
    thread.join()


def _regularly(
    exchange: Exchange, leases: Sequence[Lease], ended: threading.Event, tell: Callable[[str], None]
) -> None:
    told = False
    while not ended.wait(EVERY):
        try:
            for lease in leases:
                lease.check()
            exchange.now()
            told = False
        except (StorageError, OSError) as error:
            if not told:
                tell(f"{error}; it is tried again")
            told = True
