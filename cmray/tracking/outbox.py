"""A queue of actions on a store that may be away.

Every call puts one action at the end and then works through the queue. An action that fails because the store is
away stays at the front and is tried again by a later call, so order is kept and nothing is lost while this process
lives; after that the next `cmray sweep` replays the records. Actions find out themselves what the store already has.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable

_FIRST_WAIT, _LONGEST_WAIT = 15.0, 300.0  # seconds between attempts to reach a store that is away


def _problem(action: Callable[[], object]) -> str | None:
    """Run the action; None, or its failure in one line."""
    try:
        action()
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return re.sub(r"://[^/@\s]+@", "://", line)[:300]  # a URI may hold a password
    return None


class Outbox:
    """`probe` raises when the store is away; `where` names the store in messages; `warn` gets one-line messages."""

    def __init__(self, where: str, probe: Callable[[], object], warn: Callable[[str], None]) -> None:
        self._where = where
        self._probe = probe
        self._warn = warn
        self._warned: set[str] = set()
        self._reasons: set[str] = set()  # why actions were refused
        self._queue: deque[tuple[str, Callable[[], object]]] = deque()
        self._wait, self._again_at = _FIRST_WAIT, 0.0
        self.lock = threading.RLock()

    def do(self, what: str, action: Callable[[], object]) -> None:
        """Queue an action (`what` names it in messages) and, unless the store was just found away, run the queue."""
        with self.lock:
            self._queue.append((what, action))
            if time.monotonic() >= self._again_at:
                self._drain()

    def close(self) -> None:
        """Run the queue now, however short ago the store was found away; says so when something is left."""
        with self.lock:
            self._drain()
            if self._queue:
                self._warn(
                    f"{self._where} is still away: {len(self._queue)} updates were not sent; "
                    "the same `cmray sweep` sends them when it is back"
                )

    def _drain(self) -> None:
        while self._queue:
            what, action = self._queue[0]
            problem = _problem(action)
            if problem and _problem(self._probe) is None:
                problem = _problem(action)  # it answers: it may just have come back
                if problem and _problem(self._probe) is None:
                    self._refused(what, problem)
                    problem = None
            if problem:
                self._warn_once(
                    "", f"{self._where} is away; the sweep goes on and its records are sent later: {problem}"
                )
                self._again_at = time.monotonic() + self._wait
                self._wait = min(2 * self._wait, _LONGEST_WAIT)
                return
            self._queue.popleft()
            self._wait, self._again_at = _FIRST_WAIT, 0.0

    def _refused(self, what: str, problem: str) -> None:
        """One line for each kind of action, and one for all that fail for the same reason."""
        if problem not in self._reasons:
            self._reasons.add(problem)
            self._warn_once(
                what,
                f"{self._where} did not take {what}: {problem}; it stays in the storage folder, and the next "
                "`cmray sweep` tries again",
            )

    def _warn_once(self, kind: str, line: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(line)
