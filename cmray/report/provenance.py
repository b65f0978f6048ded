"""Where the numbers and models of an experiment come from, as tables."""

from __future__ import annotations

from typing import Any

import pandas as pd

from cmray.report.columns import protocol_of
from cmray.tracking.records import ExperimentRecord, Provenance, TrialRecord

_HASH = 12  # digits of a hash that are shown


def protocols(experiment: ExperimentRecord) -> pd.DataFrame:
    """What the numbers were measured with: one row a protocol, and how many values it has."""
    found: dict[object, tuple[Provenance, int]] = {}
    for trial in experiment.trials:
        for cell in trial.evaluations:
            p = cell.provenance
            found[protocol_of(p)] = (p, found.get(protocol_of(p), (p, 0))[1] + 1)
    rows = [_protocol(p, count) for p, count in found.values()]
    return pd.DataFrame(rows, columns=None if rows else pd.Index(["metric"]))


def models(experiment: ExperimentRecord) -> pd.DataFrame:
    """What was trained: one row a trial, index `label`. Cells are text, "" where the records do not tell."""
    rows = [_model(trial) for trial in experiment.trials]
    index = pd.Index([trial.label for trial in experiment.trials], name="label")
    return pd.DataFrame(rows, index=index, columns=None if rows else pd.Index(["trial"]))


def versions(experiment: ExperimentRecord) -> list[str]:
    """The versions that models were trained with, a line for each set: `torch 2.15.0, ray 2.60.0 (9 models)`."""
    found: dict[str, int] = {}
    for trial in experiment.trials:
        if trial.result:
            text = ", ".join(f"{name} {version}" for name, version in sorted(trial.result.versions.items()))
            found[text] = found.get(text, 0) + 1
    return [f"{text or 'not recorded'} ({count} model{'s' * (count > 1)})" for text, count in found.items()]


def _protocol(p: Provenance, count: int) -> dict[str, Any]:
    blocks = f"{p.seed_blocks} x {p.n:,}" if p.seed_blocks > 1 else f"{p.n:,}"
    reference = "published" if p.split == "published" else f"{p.reference_n:,}" if p.reference_n else ""
    return {
        "metric": p.metric,
        "options": ", ".join(f"{name} = {value}" for name, value in p.options.items()),
        "extractor": p.extractor,
        "extractor sha256": p.extractor_sha256[:_HASH],
        "resizer": p.resizer,
        "samples": blocks,
        "first seed": str(p.seed_first),
        "seeds a block": str(p.seed_block),
        "reference": f"{p.dataset}/{p.split}" if p.reference_sha256 else "none",
        "reference images": reference,
        "reference sha256": p.reference_sha256[:_HASH],
        "values": str(count),
    }


def _revision(git: str | None) -> str:
    """`0123456789ab+changes`: the sign that the code had changes is no digit of the hash."""
    revision, plus, changes = (git or "not recorded").partition("+")
    return f"{revision[:_HASH]}{plus}{changes}"


def _workers(trial: TrialRecord) -> str:
    """How many trained it; of a run that changed their number, from which step on: `4, 2 from step 300`."""
    changes = [event for event in trial.events if event.kind == "workers"]
    if len(changes) < 2:
        return str(trial.result.world_size) if trial.result else ""
    first, *later = [(int(event.metrics["workers"]), event.step) for event in changes]
    return ", ".join([str(first[0]), *(f"{count} from step {step:,}" for count, step in later)])


def _model(trial: TrialRecord) -> dict[str, str]:
    data = trial.config.get("data") or {}
    result = trial.result
    return {
        "trial": f"{trial.experiment}/{trial.name}",
        "seed": str(trial.config.get("seed", "")),
        "data": str(data.get("name") or data.get("path") or ""),
        "data digest": str(data.get("digest") or "")[:_HASH],
        "weights sha256": result.weights_sha256[:_HASH] if result else "",
        "git revision": _revision(result.git) if result else "",
        "workers": _workers(trial),
        "attempt": str(trial.attempt) if trial.attempt > 1 else "",
    }
