"""The decisions of a stopping rule about one trial: one JSON line each, kept so that no later sweep takes another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from cmray.core.files import write_atomic
from cmray.tracking.records import Decision

DECISIONS = "stopping.jsonl"


def read_decisions(folder: Path) -> list[Decision]:
    """The decisions about the trial in `folder`, in the order taken; a line that is none is left out."""
    try:
        lines = (folder / DECISIONS).read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(Decision.model_validate(json.loads(line)))
        except (ValueError, ValidationError):  # a person edited it, or the disk did
            continue
    return found


def write_decisions(folder: Path, decisions: Sequence[Decision]) -> None:
    """Replaces the file, whole; removes it when there is nothing to keep."""
    if decisions:
        # not model_dump_json, which writes NaN as null
        write_atomic(folder / DECISIONS, "".join(json.dumps(d.model_dump()) + "\n" for d in decisions))
    else:
        (folder / DECISIONS).unlink(missing_ok=True)


def stop_of(decisions: Sequence[Decision]) -> Decision | None:
    """The decision that stopped the trial; None when all of them let it go on."""
    return decisions[-1] if decisions and not decisions[-1].goes_on else None


def in_words(decision: Decision) -> str:
    """`at step 2,000 by asha: fd/digits@1 is 12.3, and of 9 trials those with at most 5.1 went on`."""
    rule = decision.rule
    text = f"at step {decision.step:,} by {rule.get('name')}: {rule.get('metric')} is {decision.value:.4g}"
    if decision.limit is None:
        return text
    return f"{text}, and of {decision.known} trials those with at most {decision.limit:.4g} went on"
