"""What a sweep tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cmray.config.plan import Trial
from cmray.tracking.records import Event


class Observer(Protocol):
    """Called from the driver's main thread only."""

    def message(self, text: str) -> None:
        """One line about what happens now."""

    def warn(self, text: str) -> None:
        """One line about what went wrong without stopping the sweep."""

    def stage(self, title: str, trials: Sequence[Trial], concurrency: int) -> None:
        """A group of trials starts training."""

    def events(self, trial: Trial, events: Sequence[Event]) -> None:
        """A trial moved on. The first call may bring what an earlier sweep left."""

    def trial_ended(self, trial: Trial, error: str | None) -> None:
        """A trial has its result, or its reason for having none."""

    def trial_stopped(self, trial: Trial, why: str) -> None:
        """A stopping rule has ended a trial: `why` begins with the step."""

    def tick(self) -> None:
        """Twice a second while something runs."""

    def stage_ended(self) -> None:
        """All trials of the stage have ended."""

    def task(self, title: str, done: int, total: int | None) -> None:
        """A counted piece of work outside training; total None means unknown."""
