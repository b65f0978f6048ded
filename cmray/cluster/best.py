"""Which sampler of an experiment is the best, as MLflow's registry gets it."""

from __future__ import annotations

import math

from cmray.config.run import RunConfig
from cmray.core.errors import CmrayError
from cmray.engine.model import make_sampler
from cmray.report.columns import extractors_of, is_flagged, one_step_column, times_label, value_columns
from cmray.report.tables import format_value
from cmray.tracking.records import Evaluation, ExperimentRecord, TrialRecord
from cmray.tracking.served import ServedModel


def best_sampler(experiment: ExperimentRecord) -> tuple[TrialRecord, Evaluation] | None:
    """The best model in one step (of those without such a number, at the smallest budget), and the best of its values
    that were measured in the same way: with one step, with several, with searched times. None before there is one.

    Teachers are left out, and values of samplers that the model is not used with by default.
    """
    columns = [c for c in value_columns(experiment) if c.metric == experiment.metric]
    ranking = one_step_column(experiment, columns) or min(columns, key=lambda c: c.nfe, default=None)
    if ranking is None:
        return None
    alike = [c for c in columns if c.protocol == ranking.protocol]
    for row in ranking.best_first():
        trial = experiment.trials[row]
        if trial.role != "trial" or trial.result is None:
            continue
        cells = [c.cells[row] for c in alike if row in c.cells and math.isfinite(c.value(row))]
        usual = [cell for cell in cells if _is_usual(trial, cell)]
        if usual:
            sign = 1 if ranking.lower_is_better else -1
            return trial, min(usual, key=lambda cell: (sign * cell.value, cell.provenance.nfe))
    return None


def _is_usual(trial: TrialRecord, cell: Evaluation) -> bool:
    """Whether nfe and times alone make this sampler for the weights that are served."""
    p = cell.provenance
    if trial.result is None or p.weights_sha256 != trial.result.weights_sha256:
        return False
    try:
        sampler = make_sampler(RunConfig.model_validate(trial.config), p.nfe, served_times(trial, cell))
    except (CmrayError, ValueError):
        return False
    return (sampler.title, sampler.times) == (p.sampler, p.times)


def served_times(trial: TrialRecord, cell: Evaluation) -> tuple[float, ...] | None:
    """Noise levels of a consistency model; those of other models follow from their budget."""
    kind = RunConfig.model_validate(trial.config).objective.kind
    return tuple(cell.provenance.times) if kind == "consistency" else None


def served_model(experiment: ExperimentRecord, trial: TrialRecord, cell: Evaluation, metric: str) -> ServedModel:
    """What goes into the registry, under the experiment's name.

    Args:
        metric: the value's name among the run's metrics.
    """
    assert trial.result is not None
    p = cell.provenance
    times = f"{'searched ' if p.searched else ''}noise levels {times_label(p.times)}"
    said = [
        f"**{trial.label}** of experiment {experiment.name}: {p.metric} {format_value(cell.value)} "
        f"(n = {p.n * p.seed_blocks:,}) at {p.nfe} NFE, {times}."
    ]
    if is_flagged(trial, extractors_of(experiment)):
        said.append(f"Trained with a distance in the features of '{trial.trained_in_features_of}', which favours it.")
    said.append("A request has a `seed` and may have a `count`, `labels` and `times`; the answer is uint8 [N,H,W,C].")
    return ServedModel(
        name=experiment.name,
        checkpoint=trial.folder / "checkpoints" / trial.result.checkpoint,
        nfe=p.nfe,
        times=served_times(trial, cell),
        description="\n\n".join(said),
        metrics=[(metric, cell.value, cell.time, trial.result.steps)] if p.n == experiment.num_samples else [],
        tags={
            "cmray.trial": f"{trial.experiment}/{trial.name}",
            "cmray.label": trial.label,
            "cmray.weights": p.weights_sha256,
            **({"cmray.git": trial.result.git} if trial.result.git else {}),
        },
    )
