"""The names of wanted numbers: MEASURE/EXTRACTOR, and the options of either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationError

from cmray.core.errors import ConfigError, nearest
from cmray.core.registry import component
from cmray.core.strict import Strict
from cmray.metrics.extractors import extractors
from cmray.metrics.measures.base import MeasureConfig, measures

METRICS_HELP = "MEASURE/EXTRACTOR, such as fd/digits or kid/digits, or {name: MEASURE/EXTRACTOR, OPTION: VALUE}"


def check_any_metric(value: str) -> str:
    """Raises ValueError unless `value` is <a registered measure>/<a registered extractor>."""
    measure, slash, extractor = value.partition("/")
    if slash and measure in measures.names() and extractor in extractors.names():
        return value
    known = [f"{m}/{e}" for m in measures.names() for e in extractors.names()]
    near = nearest(value, known).partition("? ")[0] if slash else ""
    whole = f"fd/{value if value in extractors.names() else 'digits'}"
    hint = f"{near}? " if near.startswith("did") else "" if slash else f"did you mean '{whole}'? "
    allowed = f"MEASURE/EXTRACTOR, of {', '.join(measures.names())} and {', '.join(extractors.names())}"
    raise ValueError(f"unknown metric '{value}'; {hint}(allowed: {allowed})")


class MetricSpec(Strict):
    """One wanted number: a measure in the features of an extractor, each with its options."""

    measure: component(measures, "what is computed of features")  # type: ignore[valid-type]
    extractor: component(extractors, "what computes the features")  # type: ignore[valid-type]

    @property
    def name(self) -> str:
        return f"{self.measure.name}/{self.extractor.name}"

    @property
    def options(self) -> dict[str, Any]:
        """The measure's options, all of them."""
        return {k: v for k, v in self.measure.model_dump(mode="json").items() if k != "name"}


def parse_metric(value: Any) -> MetricSpec:
    """From "kid/digits", {name: kid/digits, subset_size: 100, extractor: {weights: FILE}} or an instance.

    Raises:
        ValueError: an unknown name or option, in one line.
    """
    if isinstance(value, MetricSpec):
        return value
    if isinstance(value, Mapping) and set(value) == {"measure", "extractor"}:  # as it is dumped
        return MetricSpec.model_validate(value)
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError(f"a metric is {METRICS_HELP}; found {value!r}")
    measure, _, extractor = check_any_metric(value["name"]).partition("/")
    more = value.get("extractor") or {}
    if not isinstance(more, Mapping):
        raise ValueError(f"{value['name']}: extractor holds the extractor's options; found {more!r}")
    options = {key: v for key, v in value.items() if key not in ("name", "extractor")}
    try:
        return MetricSpec.model_validate(
            {"measure": {**options, "name": measure}, "extractor": {**more, "name": extractor}}
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first.get("ctx", {}).get("key", ""))
        where = ".".join([*(str(part) for part in first["loc"][1:]), *([key] if key else [])])
        text = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise ValueError(f"{value['name']}: {f'{where}: ' if where else ''}{text}") from None


def parse_metrics(texts: list[str]) -> tuple[MetricSpec, ...]:
    """What --metric was given: names, several with commas between them, or a mapping as YAML. Raises ConfigError."""
    import yaml

    found: list[MetricSpec] = []
    for text in texts:
        values: list[Any] = [part.strip() for part in text.split(",")]
        if text.lstrip().startswith("{"):
            try:
                values = [yaml.safe_load(text)]
            except yaml.YAMLError:
                raise ConfigError(f"--metric {text}: write {METRICS_HELP}") from None
        for value in values:
            try:
                spec = parse_metric(value)
            except ValueError as error:
                raise ConfigError(f"--metric: {error}") from None
            if spec not in found:
                found.append(spec)
    return tuple(found)


#: a metric's name alone
AnyMetric = Annotated[str, AfterValidator(check_any_metric)]
#: a metric with its options
Wanted = Annotated[MetricSpec, BeforeValidator(parse_metric)]

__all__ = ["METRICS_HELP", "AnyMetric", "MeasureConfig", "MetricSpec", "Wanted", "parse_metric", "parse_metrics"]
