"""Panels become sets of values, and trials get labels that tell them apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cmray.config.experiment import RUN_FIELDS, PanelConfig
from cmray.config.load import RawExperiment, merged, set_dotted
from cmray.config.run import RunConfig
from cmray.core.errors import ConfigError, nearest


def expand(
    base: Mapping[str, Any], panel: PanelConfig, raw: RawExperiment, name: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(values of a run, dotted fields that vary) of every trial of a panel."""
    for key in panel.base:
        if key not in RUN_FIELDS:
            raise ConfigError(f"{raw.path}: panels.{name}.base.{key}: unknown key; {nearest(key, RUN_FIELDS)}")
    grid = [dict(zip(panel.grid, values, strict=True)) for values in itertools.product(*panel.grid.values())]
    points = [*panel.points, *(panel.random.points() if panel.random else [])] or [{}]
    for combination in grid:
        for point in points:
            varied = {**combination, **point}
            for key in varied:
                head = key.split(".")[0]
                if head not in RUN_FIELDS:
                    raise ConfigError(
                        f"{raw.path}: panels.{name}: field '{key}' does not exist; '{head}' is no field of a run, "
                        f"{nearest(head, RUN_FIELDS)}"
                    )
            values = merged(base, panel.base)
            for key, value in varied.items():
                try:
                    set_dotted(values, key, value)
                except ConfigError as error:
                    raise ConfigError(f"{raw.path}: panels.{name}: {error}") from None
            yield values, varied


def constant_fields(points: Sequence[Mapping[str, Any]]) -> set[str]:
    """Fields that every one of several points sets to the same value; they tell nothing apart."""
    if len(points) < 2:
        return set()
    return {k for k, v in points[0].items() if all(k in p and p[k] == v for p in points)}


def label_of(run: RunConfig, varied: Mapping[str, Any]) -> str:
    """The objective's label, and the single fields beside the objective that vary; whole sections would be too long."""
    extra = [
        f"{k.rpartition('.')[2]}={v:g}" if isinstance(v, float) else f"{k.rpartition('.')[2]}={v}"
        for k, v in varied.items()
        if k.partition(".")[0] != "objective" and not isinstance(v, Mapping)
    ]
    return " · ".join([run.objective.label, *extra])
