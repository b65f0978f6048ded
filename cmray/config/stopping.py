"""A stopping rule against the trials it is to judge: checked before anything starts, its metric filled in."""

from __future__ import annotations

from collections.abc import Sequence

from cmray.config.run import RunConfig
from cmray.core.errors import ConfigError, nearest
from cmray.stopping import StoppingConfig


def curve_metrics(run: RunConfig) -> list[str]:
    """The names that a run's curve writes, such as fd/digits@1; none without a curve."""
    if run.curve is None:
        return []
    own = run.objective.own_nfe  # a distilled model is measured at its own number of steps only
    return [f"{run.curve.metric_name}@{nfe}" for nfe in (run.curve.nfe if own is None else (own,))]


def checked(rule: StoppingConfig, trials: Sequence[tuple[str, RunConfig]]) -> StoppingConfig:
    """The rule with its metric filled in.

    Args:
        trials: (label, run) of all trials of the sweep, at least one.

    Raises:
        ConfigError: a trial that the rule could not judge.
    """
    metric = rule.metric
    for label, run in trials:
        names = curve_metrics(run)
        if run.curve is None:
            raise ConfigError(f"stopping is given, but curve is not; trials are compared by their curves [{label}]")
        if metric is None:
            metric = names[0]
        if metric not in names:
            if rule.metric is None:
                raise ConfigError(
                    f"stopping.metric is not given, and the trials have no curve in common: {metric} of "
                    f"{trials[0][0]}, but {', '.join(names)} of {label}"
                )
            raise ConfigError(f"stopping.metric is {metric}, which the curve does not draw; {nearest(metric, names)} "
                              f"[{label}]")  # fmt: skip
        own, first = (r.curve for r in (run, trials[0][1]))
        if own is not None and first is not None and (own.metric, own.num_samples) != (first.metric, first.num_samples):
            raise ConfigError(
                f"stopping is given, but curve is measured in one way in {trials[0][0]} (metric {first.metric}, "
                f"num_samples {first.num_samples}) and in another in {label} (metric {own.metric}, num_samples "
                f"{own.num_samples}); only numbers that were measured alike are compared"
            )
        if (run.data.name, run.data.path) != (trials[0][1].data.name, trials[0][1].data.path):
            raise ConfigError(
                f"stopping is given, but {trials[0][0]} and {label} have other data, whose distances do not compare"
            )
        try:
            rule.check(run.train.steps, run.curve.every)
        except ValueError as error:
            raise ConfigError(f"{error} [{label}]") from None
    return rule.model_copy(update={"metric": metric})
