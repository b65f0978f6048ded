"""One writer per folder where nobody keeps locks (object stores, some network file systems): leases, files that their
holders write anew every few seconds.

Such places have no write on a condition that all of them share. So everybody who wants a folder puts a lease of his own
into its .lease/, and then looks: who sees another's that is alive takes his own away. Of two, at least one sees the
other's, so never do both hold, however slow a write is; when both step back, they try again at random times. A holder
that was frozen for longer than LEASE seconds finds its lease gone, and stops writing.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from cmray.core.errors import StorageError

FOLDER = ".lease"
#: seconds without a sign after which a holder is taken for dead, and between two signs
LEASE, BEAT = 30.0, 7.0
#: how often those who begin together step back before they give up
TRIES = 8


class Place(Protocol):
    """Where leases are kept: files by name, each written whole or not at all. Methods raise StorageError."""

    def url_of(self, name: str) -> str: ...

    def names(self, folder: str) -> list[str]:
        """Of the files in a folder, each with the folder's name before it."""
        ...

    def read(self, name: str) -> bytes | None:
        """None where there is no such file."""
        ...

    def write(self, name: str, data: bytes) -> None: ...

    def delete(self, name: str) -> None: ...


class Lease:
    """Holds one folder.

    Args:
        folder: its name in the store.
    """

    def __init__(self, store: Place, folder: str):
        self._store, self._folder = store, folder
        self._folder_of_leases = f"{folder}/{FOLDER}"
        self._file = f"{self._folder_of_leases}/{uuid.uuid4().hex}"
        self._mine: dict[str, Any] = {"beat": 0, **_self()}
        self._lost: str | None = None

    @contextmanager
    def held(self, tell: Callable[[str], None] = lambda _: None) -> Iterator[Lease]:
        """Raises StorageError when somebody else holds it.

        Args:
            tell: is told when the last holder gave no sign that it has ended, which is waited for.
        """
        self._take(tell)
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(ended,), daemon=True, name="cmray-lease")
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()
            self._release()

    def check(self) -> None:
        """Raises StorageError when another process has taken over."""
        if self._lost is not None:
            raise StorageError(f"{self._store.url_of(self._folder)} was taken over by {self._lost}; this process stops")

    def _take(self, tell: Callable[[str], None]) -> None:
        by: dict[str, Any] = {}
        for _ in range(TRIES):
            for name, found in self._others().items():
                self._outlive(name, found, tell)
            self._write()
            others = self._others()
            if not others:
                return
            by = next(iter(others.values()))
            self._store.delete(self._file)
            time.sleep(random.uniform(0.1, 1.0))
        raise self._in_use(by)

    def _others(self) -> dict[str, dict[str, Any]]:
        """The leases of others by name; those of processes of this machine that are no more are removed."""
        found = {}
        for name in self._store.names(self._folder_of_leases):
            content = self._read(name) if name != self._file else None
            if content is not None and _dead(content):
                self._store.delete(name)
            elif content is not None:
                found[name] = content
        return found

    def _outlive(self, name: str, found: dict[str, Any], tell: Callable[[str], None]) -> None:
        """Waits until a lease is taken away, or removes it after LEASE seconds without a sign of its holder."""
        tell(f"{self._folder} was held by {found['holder']}; waiting up to {LEASE:g} s for a sign of it")
        end = time.monotonic() + LEASE
        while time.monotonic() < end:
            time.sleep(0.5)
            now = self._read(name)
            if now is None:
                return
            if now != found:
                raise self._in_use(now)
        self._store.delete(name)

    def _in_use(self, by: dict[str, Any]) -> StorageError:
        return StorageError(
            f"{self._store.url_of(self._folder)} is in use by {by['holder']}; wait for it, or give another --storage"
        )

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads(self._store.read(name) or b"null")
        except ValueError:
            return None
        return found if isinstance(found, dict) and {"holder", "beat", "place"} <= found.keys() else None

    def _write(self) -> None:
        self._mine["beat"] += 1
        self._store.write(self._file, json.dumps(self._mine).encode())

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            try:
                holders = [o["holder"] for o in self._others().values() if o["beat"] > 1]  # who only tries has one
                if holders or self._read(self._file) is None:
                    self._lost = holders[0] if holders else "another process"
                    return
                self._write()
            except StorageError:  # away for the moment; the exchange says so
                continue

    def _release(self) -> None:
        with suppress(StorageError):  # it runs out by itself
            self._store.delete(self._file)


def _self() -> dict[str, Any]:
    """Who this process is, for people and for others on the same machine."""
    pid = os.getpid()
    return {"holder": f"process {pid} on {socket.gethostname()}", "place": [*_machine(), pid, _started(pid)]}


def _machine() -> list[Any]:
    """Tells machines, and containers on them, apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return [boot, os.stat("/proc/self/ns/pid").st_ino]
    except OSError:  # not Linux
        return [socket.gethostname(), 0]


def _started(pid: int) -> int | None:
    """When a process of this machine began, in the kernel's ticks; None when there is none or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _dead(lease: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    place = lease["place"]
    if not (isinstance(place, list) and len(place) == 4 and place[:2] == _machine() and isinstance(place[2], int)):
        return False
    return place[3] is not None and _started(place[2]) != place[3]
