"""A trial on some machine and the store that outlives it: what it needs is fetched, what it makes is sent.

The loop writes to a local folder and waits for nothing. A thread looks at the folder and sends: the events first, then
the parts of a new checkpoint, then its manifest. So a manifest in the store means a whole checkpoint whose events are
there too, and result.json means that its checkpoint is.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cmray.config.checkpoint_facts import META, read_checkpoint_facts
from cmray.core.errors import CheckpointError, CmrayError, StorageError
from cmray.core.files import write_atomic
from cmray.engine.checkpoint import newest_checkpoint, verify
from cmray.engine.remote_store import Stamp, Store, persist
from cmray.engine.remote_sync import LOG, more_lines
from cmray.engine.result import RESULT
from cmray.engine.spent import ATTEMPTS
from cmray.engine.stop import STOP

#: seconds between two looks at the folder, two sendings of the events, and two looks for a request to stop
LOOK, SEND, ASK = 0.25, 3.0, 2.0
#: seconds for which the last sending is tried again
PATIENCE = 300.0
EVENTS, ERROR = "events.jsonl", "error.txt"
#: files to which every machine that trained a trial has added lines
LINES = (LOG, ATTEMPTS)
#: links of the checkpoint that is being sent: the loop removes old ones meanwhile
SENDING = ".sending"


class RemoteTrial:
    """The folder of a trial that this process writes.

    Args:
        folder: below the store's working copy.
        warn: is told of checkpoints that were skipped, and of a store that does not answer.
    """

    def __init__(self, store: Store, folder: Path, warn: Callable[[str], None]):
        self.store, self.folder, self._warn = store, folder, warn
        self._name = store.name_of(folder)
        self._saved = folder / "checkpoints"
        self._sent: dict[str, Stamp] = {}  # small files as they were sent
        self._whole: set[str] = set()  # names of the checkpoints in the store
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._told = False

    def begin(self) -> str | None:
        """Makes the folder what a trial goes on from: the newest whole checkpoint, of the store or of this machine.

        This machine's is newer when the process died while it was sent; it is sent first, as other machines may need
        it. Returns its name, None without one. Raises StorageError.
        """
        there = self.store.listing(self._name)
        names = {name.removeprefix(f"{self._name}/") for name in there}
        self._whole = {name.split("/")[1] for name in names if name.startswith("checkpoints/") and name.endswith(META)}
        partial = {name.split("/")[1] for name in names if name.startswith("checkpoints/")} - self._whole
        for checkpoint in partial:  # by a process that was killed; a trial has one writer
            self.store.delete_folder(f"{self._name}/checkpoints/{checkpoint}")
        self._forget_another_attempt("attempt" in names)
        for stale in (STOP, ERROR, RESULT):
            (self.folder / stale).unlink(missing_ok=True)
        shutil.rmtree(self._saved / SENDING, ignore_errors=True)
        for file in LINES:
            self._fetch_lines(file)
        own = newest_checkpoint(self._saved, lambda _: None)
        if not self._fetch_newer(own[0].step if own else -1, EVENTS in names) and own is not None:
            self._send_checkpoint(own[1])
        found = newest_checkpoint(self._saved, lambda _: None)
        return found[1].name if found else None

    def _forget_another_attempt(self, counted: bool) -> None:
        """Removes what was left here of a training that somebody has begun anew since."""
        attempt, own = self.store.read(f"{self._name}/attempt") if counted else None, self.folder / "attempt"
        before = own.read_bytes() if own.is_file() else None
        if attempt == before:
            return
        for name in ("checkpoints", EVENTS, ATTEMPTS, "attempt"):
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if attempt is not None:
            write_atomic(own, attempt.decode())

    def _fetch_lines(self, file: str) -> None:
        path = self.folder / file
        there, here = self.store.read(f"{self._name}/{file}"), path.read_bytes() if path.is_file() else b""
        if there is not None:
            write_atomic(path, more_lines(there, here).decode(errors="replace"))

    def _fetch_newer(self, step: int, events: bool) -> bool:
        """Fetches the store's newest checkpoint that is sound, with its events, unless ours at `step` is newer."""
        for name in sorted(self._whole, reverse=True):
            folder = self._saved / name
            try:
                at = self.store.read(f"{self._name}/checkpoints/{name}/{META}")
                if at is None:
                    continue
                if _step(at) < step:
                    return False
                if folder.is_dir() and not _sound(folder, at):
                    shutil.rmtree(folder)
                facts = self.store.get_checkpoint(folder)
                verify(facts, folder)
            except CheckpointError as error:
                self._warn(f"skipped a damaged checkpoint: {error}")
                self._whole.discard(name)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if facts.step > step:  # at the same step, ours were the ones that were sent
                if events:
                    self.store.get(f"{self._name}/{EVENTS}", self.folder / EVENTS)
                else:
                    (self.folder / EVENTS).unlink(missing_ok=True)
            return True
        if step < 0:
            (self.folder / EVENTS).unlink(missing_ok=True)
        return False

    def start(self) -> None:
        """Sends what comes, in the background, until `end`."""
        self._thread = threading.Thread(target=self._regularly, daemon=True, name="cmray-send")
        self._thread.start()

    def end(self, patience: float = PATIENCE) -> None:
        """Sends what is left. Raises StorageError when the store stays away for `patience` seconds."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        persist(self._send, patience, self._warn)

    def _regularly(self) -> None:
        sent = asked = time.monotonic()
        while not self._ended.wait(LOOK):
            now = time.monotonic()
            try:
                new = self._newest()
                if new is not None:
                    self._send_checkpoint(new)
                if now - sent >= SEND:
                    sent = now
                    self._send_small()
                if now - asked >= ASK:
                    asked = now
                    self._look_for_stop()
                self._told = False
            except (CmrayError, OSError) as error:
                if not self._told:
                    self._warn(f"{error}; it is tried again")
                self._told = True
                self._ended.wait(2.0)

    def _newest(self) -> Path | None:
        """The newest checkpoint here that the store has not."""
        here = sorted(self._saved.glob("step-*"), reverse=True)
        return here[0] if here and here[0].name not in self._whole and (here[0] / META).is_file() else None

    def _send(self) -> None:
        new = self._newest()
        if new is not None:
            self._send_checkpoint(new)
        self._send_small()
        self._send_notes()

    def _send_checkpoint(self, folder: Path) -> None:
        links = self._saved / SENDING / folder.name
        try:
            shutil.rmtree(links, ignore_errors=True)
            links.mkdir(parents=True)
            try:
                for part in (*read_checkpoint_facts(folder).files, META):
                    _link(folder / part, links / part)
            except (FileNotFoundError, CheckpointError):  # the loop has removed it; there is a newer one
                return
            self._send_small()
            name = f"{self._name}/checkpoints/{folder.name}"
            self.store.put_checkpoint(links, name)
            self._whole.add(folder.name)
            for old in self._whole - {path.name for path in self._saved.glob("step-*")}:
                if old < folder.name:
                    self.store.delete_checkpoint(f"{self._name}/checkpoints/{old}")
                    self._whole.discard(old)
        finally:
            shutil.rmtree(links, ignore_errors=True)

    def _send_small(self) -> None:
        for file in (EVENTS, *LINES):
            self._send_file(file)

    def _send_notes(self) -> None:
        """What stands in the folder when a trial leaves: the result, or the error."""
        send_notes(self.store, self.folder)
        for old in self._whole - {path.name for path in self._saved.glob("step-*")}:
            self.store.delete_checkpoint(f"{self._name}/checkpoints/{old}")
        if (self.folder / RESULT).is_file():
            self.store.put(self.folder / RESULT, f"{self._name}/{RESULT}")

    def _send_file(self, file: str) -> None:
        path = self.folder / file
        if not path.is_file():
            return
        stat = path.stat()
        stamp = (stat.st_size, stat.st_mtime_ns)
        if self._sent.get(file) != stamp:
            data = path.read_bytes()
            if file in LINES:
                data = more_lines(self.store.read(f"{self._name}/{file}") or b"", data)
            self.store.write(f"{self._name}/{file}", data)
            self._sent[file] = stamp

    def _look_for_stop(self) -> None:
        why = self.store.read(f"{self._name}/{STOP}")
        if why is not None and not (self.folder / STOP).is_file():
            write_atomic(self.folder / STOP, why.decode(errors="replace"))


def _step(meta: bytes) -> int:
    """The step of a manifest. Raises CheckpointError."""
    try:
        return int(json.loads(meta)["step"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"a {META} in the store is damaged") from None


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(file, to)


def _sound(folder: Path, meta: bytes) -> bool:
    """Whether the checkpoint here is the one that a manifest speaks of."""
    try:
        if (folder / META).read_bytes() != meta:
            return False
        verify(read_checkpoint_facts(folder), folder)
    except (OSError, CheckpointError):
        return False
    return True


def send_notes(store: Store, folder: Path) -> None:
    """Sends what a trial's folder here says of errors: errors/, error.txt, log.txt. Raises StorageError."""
    name = store.name_of(folder)
    for path in sorted((folder / "errors").glob("*.txt")):
        if store.stamp(f"{name}/errors/{path.name}") is None:
            store.put(path, f"{name}/errors/{path.name}")
    if (folder / LOG).is_file():
        own = (folder / LOG).read_bytes()
        store.write(f"{name}/{LOG}", more_lines(store.read(f"{name}/{LOG}") or b"", own))
    if (folder / ERROR).is_file():
        store.put(folder / ERROR, f"{name}/{ERROR}")
    elif store.stamp(f"{name}/{ERROR}") is not None and (folder / RESULT).is_file():
        store.delete(f"{name}/{ERROR}")


def surely_send_notes(store: Store, folder: Path) -> None:
    """`send_notes`, over a store that is away for a while. A store that stays away is no error of the trial."""
    with suppress(StorageError):
        persist(lambda: send_notes(store, folder), 60.0)
