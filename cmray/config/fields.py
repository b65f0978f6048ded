"""Types of fields that several configs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from cmray.config.metric import MetricSpec, parse_metric
from cmray.core.errors import nearest
from cmray.metrics.extractors import extractors

METRIC_HELP = (
    "fd/EXTRACTOR: the Fréchet distance in an extractor's features; {name: fd/EXTRACTOR, extractor: {OPTION: VALUE}} "
    "gives the extractor options"
)


def check_metric(value: str) -> str:
    """Raises ValueError unless `value` is fd/<a registered extractor>."""
    known = [f"fd/{name}" for name in extractors.names()]
    if value not in known:
        raise ValueError(f"unknown metric '{value}'; {nearest(value, known)}")
    return value


def check_nfe(values: tuple[int, ...]) -> tuple[int, ...]:
    """Raises ValueError unless `values` are distinct positive budgets."""
    if any(n < 1 for n in values) or len(set(values)) != len(values):
        raise ValueError(f"nfe must be distinct numbers of network evaluations, at least 1, found {list(values)}")
    return values


def parse_distance(value: Any) -> str | MetricSpec:
    """A name fd/EXTRACTOR as it is, or one with the extractor's options. Raises ValueError for another measure."""
    if isinstance(value, str):
        return check_metric(value)
    if not isinstance(value, Mapping | MetricSpec):
        raise ValueError(f"must be {METRIC_HELP}; found {value!r}")
    found = parse_metric(value)
    if found.measure.name != "fd":
        raise ValueError(f"is {found.name}, but only fd/EXTRACTOR is measured while training")
    return found


#: a Fréchet distance's name, or one with the options of its extractor
Metric = Annotated[str | MetricSpec, BeforeValidator(parse_distance)]
#: numbers of network evaluations
Budgets = Annotated[tuple[int, ...], AfterValidator(check_nfe)]
