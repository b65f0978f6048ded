"""The wall-clock that one invocation may take."""

from __future__ import annotations

import time

from cmray.cluster.observer import Observer


class OutOfTime(Exception):
    """The budget is spent; what was begun goes on in the next invocation."""


class Budget:
    """What is left of it.

    Args:
        hours: may be a fraction; None has no end.
        began: by `time.monotonic`; None for now.
    """

    def __init__(self, hours: float | None = None, began: float | None = None):
        began = time.monotonic() if began is None else began
        self._end = None if hours is None else began + 3600 * hours

    @property
    def over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end


class Timed(Observer):
    """An observer of counted work that ends the work when the budget is over.

    `task` raises OutOfTime then.
    """

    def __init__(self, observer: Observer, budget: Budget):
        self._observer, self._budget = observer, budget

    def message(self, text: str) -> None:
        self._observer.message(text)

    def warn(self, text: str) -> None:
        self._observer.warn(text)

    def task(self, title: str, done: int, total: int | None) -> None:
        self._observer.task(title, done, total)
        if self._budget.over and (total is None or done < total):
            raise OutOfTime
