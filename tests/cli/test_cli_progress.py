"""The display of a sweep, fed by real event files, on a terminal and without one."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from cli_run import CT, write
from rich.console import Console

from cmray.cli import progress as module
from cmray.cli.console import duration
from cmray.cli.progress import Progress
from cmray.config.plan import Trial, plan_experiment
from cmray.tracking.events import EventLog, EventTail
from cmray.tracking.records import Event


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, height=30, color_system=None)


def written(c: Console) -> str:
    assert isinstance(c.file, io.StringIO)
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", c.file.getvalue())


def planned(folder: Path, count: int) -> tuple[Trial, ...]:
    file = write(folder / "study.yaml", CT, panels={"seeds [of 1]": {"grid": {"seed": list(range(count))}}})
    return plan_experiment(file, [], folder / "storage").trials


class Feed:
    """Writes events as a worker does and hands them over as the driver does."""

    def __init__(self, trial: Trial):
        self.trial, self.log = trial, EventLog(trial.folder / "events.jsonl")
        self.tail = EventTail(trial.folder / "events.jsonl")

    def write(self, step: int, kind: str = "train", ago: float = 0.0) -> None:
        metrics = {"loss": 0.5} if kind == "train" else {"fd/digits@1": 12.345}
        event = Event(kind=kind, step=step, nimg=32 * step, time=time.time() - ago, metrics=metrics)  # type: ignore[arg-type]
        self.log.append(event)

    def hand_to(self, progress: Progress) -> None:
        progress.events(self.trial, self.tail.new())


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("count", [1, 40])
def test_a_stage_from_start_to_end(tmp_path, monkeypatch, terminal, count):
    monkeypatch.setattr(module, "LINE_EVERY", 0.0)  # a line at every tick
    c = console(terminal)
    trials = planned(tmp_path, count)
    progress = Progress(c)
    progress.message("Ray on this machine")
    progress.stage("trials", trials, 2)
    progress.tick()
    feeds = [Feed(t) for t in trials]
    for step in (10, 20, 40):
        for feed in feeds:
            feed.write(step, ago=(0 - step) / 10)
            feed.write(step, "curve", ago=(0 - step) / 10)
            feed.hand_to(progress)
        progress.tick()
    for i, trial in enumerate(trials):
        progress.trial_ended(trial, "the loss is nan [at] step 3" if i % 3 == 1 else None)
        progress.tick()
    progress.stage_ended()
    progress.close()
    text = written(c)
    assert "Training trials" in text
    assert f"{count} of {count} ended" in text
    assert "40/40" in text or not terminal
    assert "12.3" in text
    assert re.search(r"Trained trials in \d+ s", text)
    failed = [f"{t.folder}/error.txt" for i, t in enumerate(trials) if i % 3 == 1]
    assert text.count("failed: the loss is nan [at] step 3") == len(failed)
    for file in failed:
        assert file in text.replace("\n", "")


def test_many_trials_fit_the_screen(tmp_path):
    c = console(True)
    trials = planned(tmp_path, 40)
    progress = Progress(c)
    progress.stage("trials", trials, 2)
    drawn = c.render_lines(progress._render(), c.options.update(height=None))
    progress.stage_ended()
    assert len(drawn) <= c.height
    assert "and 18 more" in written(c)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_resumed_trial_starts_where_it_was_and_its_pause_is_no_slowness(tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(module, "LINE_EVERY", 0.0)
    c = console(terminal)
    (trial,) = planned(tmp_path, 1)
    feed = Feed(trial)
    for step in (10, 20):
        feed.write(step, ago=60 - step)  # before somebody pressed Ctrl-C
    progress = Progress(c)
    progress.stage("trials", [trial], 1)
    feed.hand_to(progress)
    assert progress._rows[trial.name].step == 20
    assert progress._rows[trial.name].remaining() is None
    feed.log.truncate_after(10)
    for step in (11, 12):
        feed.write(step, ago=10 - step)  # a step a second from now on
    feed.hand_to(progress)
    progress.tick()
    left = progress._rows[trial.name].remaining()
    assert left is not None
    assert left == pytest.approx(20, abs=2)  # a step a second, and 20 is the farthest it has been
    progress.trial_ended(trial, None)
    progress.stage_ended()
    progress.close()
    assert "1 of 1 ended" in written(c) or not terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_counted_tasks(tmp_path, terminal):
    c = console(terminal)
    progress = Progress(c)
    for done in range(5):
        progress.task("Evaluating 4 models", done, 4)
    for done in (1, 2):
        progress.task("Searching 1 time", done, None)
    progress.warn("MLflow at [somewhere] is away")
    progress.message("next")
    progress.close()
    progress.close()
    text = written(c)
    assert text.count("Evaluating 4 models") == 1
    assert text.count("Searching 1 time") == 1
    assert "warning: MLflow at [somewhere] is away" in text
    assert (terminal and "2 evaluated" in text) or not terminal
    assert progress._live is None


@pytest.mark.parametrize("terminal", [False, True])
def test_a_trial_that_a_rule_stops_is_over_and_says_why(tmp_path, terminal):
    c = console(terminal)
    trials = planned(tmp_path, 2)
    progress = Progress(c)
    progress.stage("trials", trials, 2)
    feed = Feed(trials[0])
    feed.write(10, "curve")
    feed.hand_to(progress)
    progress.trial_stopped(trials[0], "at step 10 by asha: fd/digits@1 is 9")
    progress.trial_ended(trials[1], None)
    assert "2 of 2 ended" in progress._headline()
    progress.stage_ended()
    assert f"stopped: {trials[0].label} at step 10 by asha" in " ".join(written(c).split())


def test_a_failure_before_its_first_event(tmp_path):
    """Such as a trial whose teacher failed: it never was in a stage."""
    c = console(False)
    (trial,) = planned(tmp_path, 1)
    progress = Progress(c)
    progress.trial_ended(trial, "its teacher edm-1 failed")
    progress.tick()
    assert "failed: its teacher edm-1 failed" in written(c)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (160, "2 min 40 s"),
        (3599.7, "1 h 00 min"),
        (11100, "3 h 05 min"),
    ],
)
def test_durations_as_people_write_them(seconds, shown):
    assert duration(seconds) == shown


def test_a_long_task_says_now_and_then_how_far_it_is_without_a_terminal(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    c = console(False)
    progress = Progress(c)
    for done in range(0, 1001, 100):
        progress.task("Sampling [it]", done, 1000)
        clock[0] += 5
    progress.close()
    lines = [" ".join(line.split()) for line in written(c).splitlines()]
    assert [line.partition("Sampling")[2] for line in lines] == [
        " [it]", " [it]: 300 of 1,000, 35 s left", " [it]: 600 of 1,000, 20 s left", " [it]: 900 of 1,000, 5 s left",
    ]  # fmt: skip
