"""What an experiment does not have yet, or lost: trial by trial, with the reason."""

from __future__ import annotations

from typing import NamedTuple

from cmray.tracking.decisions import in_words
from cmray.tracking.records import ExperimentRecord, TrialRecord


class Missing(NamedTuple):
    trial: TrialRecord
    status: str  # the trial's, or "not measured" of a trained model without a number
    reason: str  # one line
    detail: str = ""  # a traceback


def missing_of(experiment: ExperimentRecord) -> list[Missing]:
    """Trials without a result, and models that were trained and not measured, in the experiment's order.

    A status that is not known here is told as it is.
    """
    measured = any(trial.evaluations for trial in experiment.trials)
    found = []
    for trial in experiment.trials:
        if trial.status != "finished":
            found.append(Missing(trial, trial.status, _reason(trial), trial.error or ""))
        elif not trial.evaluations:
            why = "the others are" if measured else "no model of this experiment is"
            found.append(Missing(trial, "not measured", f"trained, but not measured yet ({why})"))
    return found


def _reason(trial: TrialRecord) -> str:
    at = _progress(trial)
    if trial.status == "failed":
        lines = [line.strip() for line in (trial.error or "").splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'no reason was recorded'}{f' ({at})' if at else ''}"
    if trial.status == "waiting":
        return "not begun"
    if trial.stopped is not None:
        return in_words(trial.stopped)
    return at or "nothing logged"


def _progress(trial: TrialRecord) -> str:
    """`at step 300 of 800`; empty before the first event."""
    if not trial.events:
        return ""
    steps = (trial.config.get("train") or {}).get("steps")
    return f"at step {trial.events[-1].step:,}{f' of {steps:,}' if isinstance(steps, int) else ''}"
