"""Watches trials while they train: passes on what their event files say, ends those that are to stop early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cmray.cluster.budget import Budget
from cmray.cluster.mirror import Mirror
from cmray.cluster.observer import Observer
from cmray.cluster.stages import result_of
from cmray.cluster.stopping import Stopper
from cmray.config.plan import Trial
from cmray.core.files import unseen_for, write_atomic
from cmray.engine.stop import ask_to_stop, clear_stop
from cmray.tracking.decisions import in_words
from cmray.tracking.events import EventTail
from cmray.tracking.records import Event


class Follower:
    """Follows trials that some other thread or process trains.

    Args:
        stopper: applies the sweep's stopping rule; None without one.
        budget: once it is over, running trials are asked to save and leave.
    """

    def __init__(self, observer: Observer, mirror: Mirror, stopper: Stopper | None, budget: Budget):
        self.observer, self.mirror, self.stopper, self.budget = observer, mirror, stopper, budget
        self.trained = self.stopped = 0

    def follow(self, title: str, trials: Sequence[Trial], work: Callable[[], None], concurrency: int) -> None:
        """Runs `work`, which trains `trials`, to its end."""
        tails = {t.name: EventTail(t.folder / "events.jsonl") for t in trials}
        logs = {t.name: LineTail(t.folder / "log.txt") for t in trials}
        over: set[str] = set()
        asked = False

        def poll() -> None:
            nonlocal asked
            news: list[tuple[Trial, Sequence[Event]]] = []
            for trial in trials:
                for line in logs[trial.name].new():
                    self.observer.warn(f"{trial.label}: {line}")
                new = tails[trial.name].new()
                if new:
                    self.observer.events(trial, new)
                    self.mirror.events(trial.name, new)
                    news.append((trial, new))
                if trial.name not in over and (result_of(trial) is not None or (trial.folder / "error.txt").is_file()):
                    over.add(trial.name)
                    self.ended(trial)
            for trial, decision in self.stopper.judge(news) if self.stopper is not None else []:
                if trial.name not in over:
                    over.add(trial.name)
                    self.stopped += 1
                    self.observer.trial_stopped(trial, in_words(decision))
            if self.budget.over and not asked:
                asked = True
                left = [trial for trial in trials if trial.name not in over]
                if left:
                    self.observer.message("Time is up: running trials save a checkpoint and stop")
                for trial in left:
                    ask_to_stop(trial.folder, "the time that the sweep was given is up")
            self.observer.tick()

        self.observer.stage(title, trials, concurrency)
        try:
            in_background(work, poll)
        finally:
            for trial in trials:
                clear_stop(trial.folder)
            self.observer.stage_ended()
        late = time.monotonic() + max((unseen_for(t.folder) for t in trials if t.name not in over), default=0.0)
        while not asked and len(over) < len(trials) and time.monotonic() < late:  # what a machine wrote shows up late
            time.sleep(1)
            poll()
        for trial in trials:
            if trial.name not in over and not asked:
                write_atomic(trial.folder / "error.txt", "it ended without a result and without an error\n")
                self.ended(trial)

    def ended(self, trial: Trial) -> None:
        """Tells of a trial that has its result or its error."""
        error = None
        if result_of(trial) is None:
            error = (trial.folder / "error.txt").read_text().splitlines()[0]
        else:
            self.trained += 1
        self.observer.trial_ended(trial, error)


class LineTail:
    """The lines that a trial's log gets from now on."""

    def __init__(self, path: Path):
        self.path = path
        self._read = path.stat().st_size if path.is_file() else 0

    def new(self) -> list[str]:
        if not self.path.is_file() or self.path.stat().st_size <= self._read:
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        return data.decode(errors="replace").splitlines()


def in_background(work: Callable[[], None], poll: Callable[[], None], every: float = 0.5) -> None:
    """Runs `work` in a thread and `poll` here until it ends, and once after. Raises what `work` raised.

    The main thread stays free for Ctrl-C, which Ray's own blocking calls would swallow.
    """
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True, name="cmray-work")
    thread.start()
    while thread.is_alive():
        thread.join(every)
        poll()
    poll()
    if raised:
        raise raised[0]
