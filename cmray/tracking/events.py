"""The events file of a trial: one JSON line per logged step, written by the worker and tailed by the driver.

A line may be torn (the worker was killed while writing) and the file may be replaced by a shorter one (a resumed
trial drops the steps it is going to repeat), so reading tolerates both.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

from pydantic import ValidationError

from cmray.core.files import write_atomic
from cmray.tracking.records import Event

_log = logging.getLogger(__name__)


def _encode(event: Event) -> bytes:
    # Not model_dump_json: pydantic writes NaN and infinity as null there, and a diverged loss must read back as NaN.
    return json.dumps(event.model_dump(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _decode(line: bytes) -> Event:
    return Event.model_validate(json.loads(line))


def _complete(data: bytes) -> bytes:
    """The part of `data` that consists of whole lines."""
    return data[: data.rfind(b"\n") + 1]


def _parse(path: Path, data: bytes) -> list[Event]:
    events = []
    for line in data.splitlines():
        if not line.strip():
            continue
        try:
            events.append(_decode(line))
        except (ValueError, ValidationError):  # a damaged line sinks no sweep, and somebody should know
            _log.warning("%s: %r is no event and is left out", path, line[:80])
    return events


def read_events(path: Path) -> list[Event]:
    """All events of a file in the order written; an empty list when there is no file.

    A last line without its line end is torn and left out; so is any other line that is no event, with a warning.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return _parse(path, _complete(data))


class EventLog:
    """Appends events to `path`. One writer (rank 0); a line reaches the file whole or, if killed, torn at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event) -> None:
        """Write one line. Raises OSError when the disk is full or the folder is gone."""
        line = _encode(event)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Opened each time: truncate_after, perhaps of another process, replaces the file under its name.
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                # A torn line would swallow this one; drop it, its step is being repeated.
                data = os.pread(fd, size, 0)
                os.ftruncate(fd, len(_complete(data)))
            # A disk that fills up may take a part of the line; what is left is torn and dropped as above.
            if os.write(fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(fd)

    def truncate_after(self, step: int) -> None:
        """Drop the events with a step above `step` and a torn last line; the file is replaced in one rename.

        Called on resume with the checkpoint's step, so that no step stands twice.
        """
        if not self.path.exists():
            return
        before = self.path.read_bytes()
        after = b"".join(_encode(event) for event in _parse(self.path, _complete(before)) if event.step <= step)
        if after == before:
            return
        write_atomic(self.path, after)


class EventTail:
    """Reads what was added to an events file since the last call, in the driver, while a worker writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._last = b""  # the line before the offset
        # Curves of one step may come as several lines (one per NFE), hence the names in the identity.
        self._returned: set[tuple[str, int, tuple[str, ...]]] = set()

    def new(self) -> list[Event]:
        """Events of complete lines not returned before; an empty list when there is no file yet.

        After the file was replaced or shortened it is read from its start, but a step of a kind that was returned
        once is not returned again. A whole line that is no event is left out with a warning.
        """
        try:
            with self.path.open("rb") as file:
                # A replaced file may have grown past the old offset between two calls, and its inode number may be
                # an old one used again: only the line before the offset (it holds a time) tells them apart.
                file.seek(self._offset - len(self._last))
                if file.read(len(self._last)) != self._last:
                    self._offset, self._last = 0, b""
                    file.seek(0)
                data = _complete(file.read())
        except FileNotFoundError:
            return []
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return []  # on a network file system: replaced while it was read
        fresh = []
        for event in _parse(self.path, data):
            identity = (event.kind, event.step, tuple(sorted(event.metrics)))
            if identity not in self._returned:
                self._returned.add(identity)
                fresh.append(event)
        if data:
            self._offset += len(data)
            self._last = data[data.rfind(b"\n", 0, -1) + 1 :]
        return fresh
