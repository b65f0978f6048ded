"""Applies a sweep's stopping rule to what the trials' curves say, and keeps every decision on disk."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from cmray.cluster.stages import decisions_of, is_over, result_of
from cmray.config.plan import Plan, Trial
from cmray.engine.stop import ask_to_stop
from cmray.tracking.decisions import in_words, stop_of, write_decisions
from cmray.tracking.events import read_events
from cmray.tracking.records import Decision, Event


class Stopper:
    """Judges the trials of a plan, one curve point after the other in the order in which they were measured.

    What is known when a sweep goes on: the decisions on disk, which stand, and the curves of all trials of the
    experiment, whether they have finished, failed, were interrupted or belong to panels that were not asked for.

    Args:
        plan: with `config.stopping`.
    """

    def __init__(self, plan: Plan):
        assert plan.config.stopping is not None
        assert plan.config.stopping.metric is not None
        self._rule, self._metric = plan.config.stopping, plan.config.stopping.metric
        self._plain = self._rule.model_dump(mode="json")
        self._trials = {t.name: t for t in plan.trials}
        self._decisions: dict[str, list[Decision]] = {}
        self._curves: dict[str, dict[int, float]] = {}
        for trial in (*plan.trials, *(t for t in plan.others if t.role == "trial")):
            decisions = self._decisions[trial.name] = decisions_of(trial, self._rule)
            curve = self._curves[trial.name] = {d.step: d.value for d in decisions}
            end = stop_of(decisions)
            if result_of(trial) is not None or trial.name not in self._trials or end is not None:
                for event in read_events(trial.folder / "events.jsonl"):
                    value = self._value(event)
                    # what a trial went on to measure until it heeded its end is not compared
                    if value is not None and (end is None or event.step <= end.step):
                        curve.setdefault(event.step, value)
        self._open = {t.name for t in plan.trials if not is_over(plan, t)}

    def _value(self, event: Event) -> float | None:
        return event.metrics.get(self._metric) if event.kind == "curve" else None

    def catch_up(self) -> list[tuple[Trial, Decision]]:
        """Judges what earlier sweeps left undecided; returns the trials that end by it."""
        open_ = [self._trials[name] for name in sorted(self._open)]
        return self.judge((t, read_events(t.folder / "events.jsonl")) for t in open_)

    def judge(self, news: Iterable[tuple[Trial, Sequence[Event]]]) -> list[tuple[Trial, Decision]]:
        """Judges new curve points; asks the trials that end to save and leave, and returns them.

        A point that was seen before, such as one that a resumed trial measures again, changes nothing.
        """
        points = [
            (event.time, event.step, trial, value)
            for trial, events in news
            if trial.name in self._open
            for event in events
            if (value := self._value(event)) is not None
        ]
        ended = []
        for _, step, trial, value in sorted(points, key=lambda p: (p[0], p[1], p[2].name)):
            if trial.name not in self._open:  # ended by an earlier one of these points
                continue
            own = self._curves[trial.name]
            own.setdefault(step, value)
            train, curve = trial.run.train, trial.run.curve
            assert curve is not None
            decided = self._decisions[trial.name]
            if any(d.step == step for d in decided) or step not in self._rule.looks(train.steps, curve.every):
                continue
            others = {name: c for name, c in self._curves.items() if name != trial.name}
            verdict = self._rule.verdict(step, {at: v for at, v in own.items() if at <= step}, others)
            decision = Decision(
                rule=self._plain, step=step, value=own[step], time=time.time(), goes_on=verdict.goes_on,
                limit=verdict.limit, known=verdict.known,
            )  # fmt: skip
            decided.append(decision)
            write_decisions(trial.folder, decided)
            if not decision.goes_on:
                self._open.discard(trial.name)
                for later in [at for at in own if at > step]:
                    del own[later]
                ask_to_stop(trial.folder, f"stopped {in_words(decision)}")
                ended.append((trial, decision))
        return ended
