"""What a stopping rule decides about trials whose curves are written by hand, and that it stays decided."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cli_run import CT, good, here, write

from cmray.cluster.stages import is_over, pending_stages, stopped
from cmray.cluster.stopping import Stopper
from cmray.cluster.sweep import _plan_record
from cmray.config.plan import Plan, Trial, plan_experiment
from cmray.engine.stop import STOP
from cmray.report.load import load_experiment
from cmray.report.tables import fd_table, footnotes
from cmray.tracking.decisions import DECISIONS, in_words, read_decisions, write_decisions
from cmray.tracking.events import EventLog, read_events
from cmray.tracking.records import Decision, Event

ASHA = {"name": "asha", "grace": 10, "reduction": 2}


def point(step: int, value: float, time: float) -> Event:
    return Event(kind="curve", step=step, nimg=32 * step, time=time, metrics={"fd/digits@1": value, "fd/digits@2": 0.0})


class Bench:
    def __init__(self, folder: Path):
        self.folder = folder

    def plan(self, count: int = 4, **fields) -> Plan:
        panels = {"p": {"grid": {"seed": list(range(count))}}}
        fields.setdefault("stopping", ASHA)
        return plan_experiment(
            write(self.folder / "study.yaml", CT, panels=panels, **fields), [], self.folder / "storage"
        )


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def log(trial: Trial, *events: Event) -> None:
    for event in events:
        EventLog(trial.folder / "events.jsonl").append(event)


def told(trial: Trial) -> list[tuple[int, bool]]:
    return [(d.step, d.goes_on) for d in read_decisions(trial.folder)]


def test_decisions_follow_the_order_of_measuring_not_that_of_looking(bench):
    plan = bench.plan()
    a, b, c, d = plan.trials
    news = [(d, [point(10, 4.0, 40)]), (c, [point(10, 1.0, 30)]), (b, [point(10, 3.0, 20)]), (a, [point(10, 2.0, 10)])]
    ended = Stopper(plan).judge(news)
    # a is the first and goes on; b is worse than a; c is the best; of a, b, c and d two may go on, d is worse than both
    assert [t.name for t, _ in ended] == [b.name, d.name]
    assert [told(t) for t in (a, b, c, d)] == [[(10, True)], [(10, False)], [(10, True)], [(10, False)]]
    assert (b.folder / STOP).is_file()
    assert not (a.folder / STOP).exists()
    (decision,) = read_decisions(d.folder)
    assert (decision.value, decision.limit, decision.known) == (4.0, 2.0, 4)
    words = in_words(decision)
    assert words == "at step 10 by asha: fd/digits@1 is 4, and of 4 trials those with at most 2 went on"


def test_decisions_are_kept_and_stand_whatever_comes_later(bench):
    plan = bench.plan()
    a, b, c, _ = plan.trials
    first = Stopper(plan)
    assert [t for t, _ in first.judge([(a, [point(10, 5.0, 1)])])] == []
    assert [t for t, _ in first.judge([(b, [point(10, 9.0, 2)])])] == [b]
    kept = {t.name: (t.folder / DECISIONS).read_bytes() for t in (a, b)}
    again = Stopper(plan)
    # the driver is new: a measures its point once more after resuming, and c comes and is better than both
    assert again.judge([(a, [point(10, 700.0, 3)]), (b, [point(10, 0.1, 3)]), (c, [point(10, 1.0, 4)])]) == []
    assert {t.name: (t.folder / DECISIONS).read_bytes() for t in (a, b)} == kept
    assert told(c) == [(10, True)]
    assert read_decisions(c.folder)[0].known == 3, "what was measured before the driver was killed is known"
    assert read_decisions(c.folder)[0].limit == 5.0, "the value that was judged stands, not the one measured again"


def test_a_driver_that_was_killed_before_it_decided_catches_up(bench):
    plan = bench.plan()
    a, b, c, _ = plan.trials
    log(b, point(10, 3.0, 20), point(20, 1.0, 50))
    log(a, point(10, 2.0, 10), point(20, 2.0, 30))
    log(c, Event(kind="train", step=10, nimg=1, time=0, metrics={"loss": 1.0}))
    ended = Stopper(plan).catch_up()
    assert [(t.name, d.step) for t, d in ended] == [(b.name, 10)]
    assert [told(t) for t in (a, b, c)] == [[(10, True), (20, True)], [(10, False)], []]
    assert read_decisions(a.folder)[1].known == 1, "b was stopped at 10 before it came to 20"


def test_what_a_stopped_trial_measured_until_it_heeded_is_not_compared(bench):
    plan = bench.plan()
    a, b, *_ = plan.trials
    log(a, point(10, 1.0, 1))
    log(b, point(10, 2.0, 2))
    Stopper(plan).catch_up()
    log(b, point(20, 0.5, 3))
    log(a, point(20, 0.9, 4))
    Stopper(plan).catch_up()
    (at_20,) = [d for d in read_decisions(a.folder) if d.step == 20]
    assert (at_20.goes_on, at_20.known) == (True, 1)
    assert told(b) == [(10, False)]


def test_a_diverged_curve_ends_its_trial_and_reads_back(bench):
    plan = bench.plan()
    a = plan.trials[0]
    ended = Stopper(plan).judge([(a, [point(10, math.nan, 1)])])
    assert [t for t, _ in ended] == [a]
    (decision,) = read_decisions(a.folder)
    assert math.isnan(decision.value)
    found = stopped(plan, a)
    assert found is not None
    assert not found.goes_on


def test_a_stopped_trial_is_over_until_the_rule_changes(bench):
    plan = bench.plan()
    a, b, *_ = plan.trials
    Stopper(plan).judge([(a, [point(10, 1.0, 1)]), (b, [point(10, 2.0, 2)])])
    assert [is_over(plan, t) for t in plan.trials] == [False, True, False, False]
    (stage,) = pending_stages(plan)
    assert b.name not in {t.name for t in stage.trials}
    for other in (None, {**ASHA, "reduction": 3}, {"name": "median", "grace": 10}):
        changed = bench.plan(stopping=other)
        assert not any(is_over(changed, t) for t in changed.trials)
        assert len(pending_stages(changed)[0].trials) == 4


def test_panels_that_were_not_asked_for_are_compared_with(tmp_path):
    panels = {"old": {"points": [{"seed": 0}]}, "new": {"points": [{"seed": 1}]}}
    file = write(tmp_path / "study.yaml", CT, panels=panels, stopping=ASHA)
    whole = plan_experiment(file, [], tmp_path / "storage")
    log(whole.trials[0], point(10, 1.0, 1))
    part = plan_experiment(file, [], tmp_path / "storage", ["new"])
    (new,) = part.trials
    assert [t for t, _ in Stopper(part).judge([(new, [point(10, 2.0, 2)])])] == [new]


def test_the_median_rule_needs_the_curves_of_others(bench):
    plan = bench.plan(stopping={"name": "median", "grace": 10})
    a, b, c, d = plan.trials
    for i, (trial, value) in enumerate([(a, 1.0), (b, 2.0), (c, 3.0), (d, 9.0)]):
        log(trial, point(10, value, i), point(20, value, 10 + i))
    assert [(t.name, x.step) for t, x in Stopper(plan).catch_up()] == [(d.name, 10)]
    assert told(a) == [(10, True), (20, True)]


def test_lines_that_are_no_decisions_are_left_out(bench):
    plan = bench.plan()
    a = plan.trials[0]
    Stopper(plan).judge([(a, [point(10, 1.0, 1)])])
    file = a.folder / DECISIONS
    file.write_text(file.read_text() + '{"rule": {}\n')
    assert told(a) == [(10, True)]
    write_decisions(a.folder, [])
    assert not file.exists()


def test_a_finished_trial_is_compared_with_and_never_stopped(bench):
    """The records are real: one trial is trained to its end before there was a rule."""
    one = write(bench.folder / "one.yaml", CT, name="study", seed=0)
    storage = bench.folder / "storage"
    good(here("train", one, "--storage", storage, "--tracking-uri", "none"))
    plan = bench.plan()
    done = plan.trials[0]
    assert is_over(plan, done), "the test wants a trained trial of the plan"
    value = next(e.metrics["fd/digits@1"] for e in read_events(done.folder / "events.jsonl") if e.kind == "curve")
    stopper = Stopper(plan)
    assert stopper.catch_up() == []
    b, c, _ = plan.trials[1:]
    ended = stopper.judge([(b, [point(10, value + 1, 1)]), (c, [point(10, value - 1, 2)])])
    assert [t for t, _ in ended] == [b]
    assert told(done) == []


def test_the_table_and_its_notes_show_who_was_stopped_and_why(bench):
    plan = bench.plan()
    a, b, *_ = plan.trials
    Stopper(plan).judge([(a, [point(10, 1.0, 1)]), (b, [point(10, 2.0, 2)])])
    log(b, point(10, 2.0, 2), point(20, 1.9, 3))
    (plan.folder / "experiment.json").write_text(json.dumps(_plan_record(plan)))
    record = load_experiment(bench.folder / "storage", "study")
    shown = {t.name: t for t in record.trials}
    assert shown[b.name].status == "stopped"
    assert isinstance(shown[b.name].stopped, Decision)
    assert shown[a.name].status == "waiting"
    frame = fd_table(record)
    assert dict(zip(frame["label"], frame["status"], strict=True))[b.label] == "stopped"
    (note,) = [n for n in footnotes(record) if n.startswith("stopped: ")]
    assert note == f"stopped: {b.label} {in_words(shown[b.name].stopped)}."
