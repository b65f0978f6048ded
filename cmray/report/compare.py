"""Several experiments laid side by side as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmray.core.errors import CmrayError
from cmray.tracking.records import ExperimentRecord, TrialRecord


class Comparison(ExperimentRecord):
    """Experiments as one record, whose trials' labels begin with the experiment they are of.

    A trial that several experiments share stands here once. `sources` and `plain` go with `trials`: the names of the
    experiments that have it, and its label in the first of them.
    """

    parts: list[ExperimentRecord]
    sources: list[list[str]]
    plain: list[str]


def compare(experiments: Sequence[ExperimentRecord]) -> Comparison:
    """The first experiment beside the others: its metric ranks, and its x axis is drawn.

    Panels of the same name become one, so that their lines lie over each other. Numbers that were measured
    differently stay in columns of their own, as within one experiment.

    Raises:
        CmrayError: an experiment named twice, or nothing to compare with.
    """
    names = [experiment.name for experiment in experiments]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CmrayError(f"--compare: the experiment '{twice}' is named twice; name each experiment once")
    if len(experiments) < 2:
        raise CmrayError("--compare: there is one experiment; a comparison takes two or more")
    sources: dict[tuple[str, str], list[str]] = {}
    found: dict[tuple[str, str], TrialRecord] = {}
    panels: dict[tuple[str, str], list[str]] = {}
    for experiment in experiments:
        for trial in experiment.trials:
            key = (trial.experiment, trial.name)
            found.setdefault(key, trial)
            sources.setdefault(key, []).append(experiment.name)
            panels.setdefault(key, []).extend(trial.panels)
    keys = sorted(found, key=lambda key: found[key].role != "teacher")
    trials = [
        found[key].model_copy(
            update={
                "label": " · ".join([" and ".join(sources[key]), found[key].label]),
                "panels": list(dict.fromkeys(panels[key])),
            }
        )
        for key in keys
    ]
    samples = {experiment.num_samples for experiment in experiments}
    first = experiments[0]
    return Comparison(
        name=f"{', '.join(names[:-1])} and {names[-1]}",
        description="; ".join(f"{e.name}: {e.description}" for e in experiments if e.description),
        folder=first.folder,
        trials=trials,
        x_axis=first.x_axis,
        metric=first.metric,
        num_samples=first.num_samples if len(samples) == 1 else None,
        parts=list(experiments),
        sources=[sources[key] for key in keys],
        plain=[found[key].label for key in keys],
    )


def parts_of(experiment: ExperimentRecord) -> list[ExperimentRecord]:
    """The experiments of a comparison, else the experiment alone."""
    return list(experiment.parts) if isinstance(experiment, Comparison) else [experiment]


def default_folder(experiment: ExperimentRecord) -> Path:
    """Where a report is written unless it is told: report/ of the experiment, report-with-B/ of a comparison with B."""
    others = [part.name for part in parts_of(experiment)[1:]]
    return experiment.folder / ("-".join(["report-with", *others]) if others else "report")
