"""Types of fields that several configs share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from cmray.core.errors import nearest
from cmray.metrics.extractors import extractors

METRIC_HELP = "fd/EXTRACTOR: the Fréchet distance in an extractor's features"


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


def extractor_of(metric: str) -> str:
    """The extractor's name of a metric fd/EXTRACTOR."""
    return metric.removeprefix("fd/")


#: a metric's name
Metric = Annotated[str, AfterValidator(check_metric)]
#: numbers of network evaluations
Budgets = Annotated[tuple[int, ...], AfterValidator(check_nfe)]
