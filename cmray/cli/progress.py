"""Shows a sweep while it runs: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from cmray.cli.console import duration
from cmray.config.plan import Trial
from cmray.tracking.records import Event

#: seconds between lines where there is no terminal
LINE_EVERY = 15.0
#: states of trials that are not trained any more
ENDED = ("done", "stopped", "failed")


@dataclass
class _Row:
    """What is known of one trial."""

    label: str
    steps: int
    workers: int
    step: int = 0
    loss: float | None = None
    curve: str = ""
    state: str = "waiting"
    #: (time, step) of recent events of this stage, for the speed
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=12))

    def remaining(self) -> float | None:
        """Seconds to its end at its recent speed."""
        if self.state in ENDED:
            return 0.0
        if len(self.recent) < 2:
            return None
        (t0, s0), (t1, s1) = self.recent[0], self.recent[-1]
        return (self.steps - self.step) * (t1 - t0) / (s1 - s0) if s1 > s0 else None


class Progress:
    """An Observer for people. Everything goes to `console`, normally standard error."""

    def __init__(self, console: Console):
        self.console = console
        self._rows: dict[str, _Row] = {}
        self._title, self._concurrency = "", 1
        self._began = self._stage_began = time.monotonic()
        self._stage_at = time.time()  # by the clock that events carry
        self._worker_seconds = 0.0
        self._last_tick = self._last_line = self._began
        self._live: Live | None = None
        self._task: tuple[str, int, int | None] | None = None
        self._task_began = self._began

    # Observer

    def message(self, text: str) -> None:
        self._end_task()
        self._line(text)

    def _line(self, text: str) -> None:
        self.console.print(
            f"[dim]{duration(time.monotonic() - self._began):>11}[/]  {escape(text)}", highlight=False, soft_wrap=True
        )

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)

    def stage(self, title: str, trials: Sequence[Trial], concurrency: int) -> None:
        self._rows = {t.name: _Row(t.label, t.run.train.steps, t.run.resources.workers) for t in trials}
        self._title, self._concurrency = title, concurrency
        self._stage_began = self._last_tick = self._last_line = time.monotonic()
        self._stage_at = time.time()
        each = "1 run" if len(trials) == 1 else f"{len(trials)} runs, {concurrency} at a time"
        self.message(f"Training {title}: {each}")
        if self.console.is_terminal:
            self._live = Live(self._render(), console=self.console, refresh_per_second=2, transient=True)
            self._live.start()

    def events(self, trial: Trial, events: Sequence[Event]) -> None:
        row = self._rows[trial.name]
        for event in events:
            row.step = max(row.step, event.step)
            row.loss = event.metrics.get("loss", row.loss)
            if event.kind == "curve":
                row.curve = "  ".join(f"{k} {v:.3g}" for k, v in event.metrics.items())
            if event.kind == "train" and event.time >= self._stage_at:  # a pause before is no slowness
                row.recent.append((event.time, event.step))
        if row.state == "waiting":
            row.state = "running"

    def trial_ended(self, trial: Trial, error: str | None) -> None:
        row = self._rows.setdefault(trial.name, _Row(trial.label, trial.run.train.steps, 1))
        row.state = "failed" if error else "done"
        if error:
            self.warn(f"{trial.label} failed: {error} (see {trial.folder}/error.txt)")
        elif not self._live:
            self.message(f"done: {row.label}  {row.curve}")

    def trial_stopped(self, trial: Trial, why: str) -> None:
        self._rows.setdefault(trial.name, _Row(trial.label, trial.run.train.steps, 1)).state = "stopped"
        self.message(f"stopped: {trial.label} {why}")

    def tick(self) -> None:
        now = time.monotonic()
        busy = sum(row.workers for row in self._rows.values() if row.state == "running")
        self._worker_seconds += busy * (now - self._last_tick)
        self._last_tick = now
        if self._live:
            self._live.update(self._render())
        elif now - self._last_line >= LINE_EVERY:
            self._last_line = now
            running = [
                f"{row.label} {100 * row.step // row.steps}%{self._left(row.remaining(), ' (', ')')}"
                for row in self._rows.values()
                if row.state == "running"
            ]
            self.message(f"{self._headline()}: {', '.join(running) or 'starting'}")

    def stage_ended(self) -> None:
        if self._live:
            self._live.update(self._render())
            self._live.stop()
            self._live = None
            self.console.print(self._render())
        spent = time.monotonic() - self._stage_began
        self.message(
            f"Trained {self._title} in {duration(spent)} ({self._worker_seconds / 60:.1f} worker-minutes so far)"
        )

    def task(self, title: str, done: int, total: int | None) -> None:
        if self._task is None or self._task[0] != title:
            self.message(title)
            self._task_began = self._last_line = time.monotonic()
            if self.console.is_terminal:
                self._live = Live(console=self.console, refresh_per_second=4, transient=True)
                self._live.start()
        self._task = (title, done, total)
        if self._live:
            self._live.update(self._render_task())
        elif total and time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            left = (self._last_line - self._task_began) / done * (total - done) if done else None
            self._line(f"{title}: {done:,} of {total:,}{self._left(left, ', ', '')}")

    def close(self) -> None:
        """Takes the live display away."""
        self._end_task()

    # drawing

    def _end_task(self) -> None:
        if self._task is not None:
            self._task = None
            if self._live:
                self._live.stop()
                self._live = None

    def _render_task(self) -> RenderableType:
        assert self._task is not None
        _, done, total = self._task
        table = Table.grid(padding=(0, 1))
        spent = time.monotonic() - self._task_began
        if total is None:
            table.add_row(" " * 12, f"{done} evaluated", f"{duration(spent)}")
        else:
            left = spent / done * (total - done) if done else None
            table.add_row(" " * 12, ProgressBar(total, done, width=30), f"{done}/{total}{self._left(left, ', ', '')}")
        return table

    def _render(self) -> RenderableType:
        rows = list(self._rows.values())
        table = Table.grid(padding=(0, 1))
        table.add_column(max_width=34, no_wrap=True, overflow="ellipsis")
        table.add_column(width=18)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=30)
        table.add_column(no_wrap=True, justify="right")
        room = max(6, self.console.height - 8)
        order = {"running": 0, "failed": 1, "done": 2, "stopped": 3, "waiting": 4}
        for row in sorted(rows, key=lambda r: order[r.state])[:room] if len(rows) > room else rows:
            colour = {"done": "green", "stopped": "yellow", "failed": "red", "running": "cyan"}.get(row.state, "dim")
            facts = row.curve or (f"loss {row.loss:.3g}" if row.loss is not None else "")
            state = self._left(row.remaining(), "", "") if row.state == "running" else row.state
            table.add_row(
                f"[{colour}]{escape(row.label)}[/]",
                ProgressBar(row.steps, row.step, width=18),
                f"{row.step:,}/{row.steps:,}",
                facts,
                state or "running",
            )
        hidden = len(rows) - room
        more = [f"[dim]and {hidden} more[/]"] if hidden > 0 else []
        return Group(f"[bold]{self._headline()}[/]", table, *more)

    def _headline(self) -> str:
        rows = list(self._rows.values())
        ended = sum(row.state in ENDED for row in rows)
        spent = time.monotonic() - self._stage_began
        left = self._left(self._stage_remaining(), ", ", "")
        return f"{self._title}: {ended} of {len(rows)} ended, {duration(spent)}{left}"

    def _stage_remaining(self) -> float | None:
        """Seconds to the end of the stage: what is left of every trial, shared by those that run at once."""
        rows = list(self._rows.values())
        speeds = []
        for row in rows:
            if len(row.recent) >= 2:
                (t0, s0), (t1, s1) = row.recent[0], row.recent[-1]
                if s1 > s0:
                    speeds.append((t1 - t0) / (s1 - s0))
        if not speeds:
            return None
        typical = sorted(speeds)[len(speeds) // 2]
        left = []
        for row in rows:
            own = row.remaining()
            left.append((row.steps - row.step) * typical if own is None else own)
        return max(sum(left) / max(1, self._concurrency), max(left, default=0.0))

    @staticmethod
    def _left(seconds: float | None, before: str, after: str) -> str:
        return "" if seconds is None else f"{before}{duration(seconds)} left{after}"
