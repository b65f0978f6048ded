"""The typed configuration of an experiment: a run, the panels that vary it, and what is done with the results."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cmray.config.fields import Budgets
from cmray.config.metric import METRICS_HELP, AnyMetric, MetricSpec, Wanted, parse_metric
from cmray.config.run import RunConfig
from cmray.core.errors import nearest
from cmray.core.protocol import BLOCK
from cmray.core.rng import numpy_generator
from cmray.core.strict import Strict
from cmray.objectives.base import TEACHER_NFE
from cmray.samplers import samplers
from cmray.stopping import StoppingField

#: entries of the storage folder that are no experiments
RESERVED = frozenset({"datasets", "reference", "mlartifacts", "mlflow.db"})


class Draw(Strict):
    """One random field: exactly one of uniform, log_uniform and choice."""

    uniform: tuple[float, float] | None = Field(default=None, description="[low, high], ascending")
    log_uniform: tuple[float, float] | None = Field(default=None, description="[low, high], positive and ascending")
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1, description="values, each as likely")
    integer: bool = Field(default=False, description="whole numbers, both bounds included")
    digits: int | None = Field(default=None, ge=1, le=15, description="significant digits that are kept")

    @model_validator(mode="after")
    def _one(self) -> Draw:
        given = [k for k in ("uniform", "log_uniform", "choice") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"a draw has exactly one of uniform, log_uniform, choice; found {given or 'none'}")
        for low, high in filter(None, (self.uniform, self.log_uniform)):
            if low >= high:
                raise ValueError(f"a draw's range must ascend, found [{low}, {high}]")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform needs positive bounds, found {list(self.log_uniform)}")
        for name, given in (("integer", self.integer), ("digits", self.digits is not None)):
            if given and self.choice is not None:
                raise ValueError(f"{name} is for uniform and log_uniform; a choice is taken as it is written")
        if self.integer:
            if self.digits is not None:
                raise ValueError("a draw has integer or digits, not both: whole numbers are kept as they are")
            bounds = self.uniform or self.log_uniform or ()
            if any(b != int(b) for b in bounds):
                raise ValueError(f"integer needs whole numbers as bounds, found {list(bounds)}")
        return self

    def value(self, u: float) -> Any:
        """The drawn value for u in [0, 1)."""
        if self.choice is not None:
            return self.choice[int(u * len(self.choice))]
        bounds = self.uniform or self.log_uniform
        assert bounds is not None
        low, high = bounds[0], bounds[1] + 1 if self.integer else bounds[1]
        if self.uniform is not None:
            value = low + u * (high - low)
        else:
            value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        if self.digits is not None:
            value = float(f"{value:.{self.digits}g}")
        value = min(max(value, bounds[0]), bounds[1] + (0.5 if self.integer else 0))  # rounding may step over a bound
        return math.floor(value) if self.integer else value


class RandomConfig(Strict):
    """`count` points, each field drawn on its own."""

    count: int = Field(ge=1, le=10_000, description="points to draw; equal ones are one trial")
    seed: int = Field(default=0, ge=0, description="of the draws; the first points stay when count grows")
    fields: dict[str, Draw] = Field(min_length=1, description="dotted field: how it is drawn")

    def points(self) -> list[dict[str, Any]]:
        rng = numpy_generator("random panel", self.seed)
        return [{key: draw.value(rng.random()) for key, draw in self.fields.items()} for _ in range(self.count)]


class PanelConfig(Strict):
    """A group of trials: `base` on the experiment, then every combination of `grid` with every point."""

    base: dict[str, Any] = Field(default={}, description="fields of a run, merged over the experiment's")
    grid: dict[str, list[Any]] = Field(default={}, description="dotted field: values; all combinations")
    points: list[dict[str, Any]] = Field(default=[], description="dotted fields of single trials")
    random: RandomConfig | None = Field(default=None, description="points that are drawn")

    @field_validator("grid")
    @classmethod
    def _values(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in value.items():
            if not values:
                raise ValueError(f"grid.{key} is empty; give at least one value")
        return value


class TeacherSampler(Strict):
    """A sampler of denoisers at a budget of network evaluations."""

    name: str = Field(description="a sampler of denoisers")
    nfe: int = Field(ge=1, description="network evaluations per image")
    options: dict[str, Any] = Field(default={}, description="of the sampler, such as {S_churn: 40}")

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        usable = [name for name, cls in samplers.classes().items() if not cls.of_consistency]
        if value not in usable:
            raise ValueError(f"unknown sampler of denoisers '{value}'; {nearest(value, usable)}")
        return value

    @property
    def spec(self) -> dict[str, Any]:
        """Name and options in one mapping."""
        return {**self.options, "name": self.name}


class EvaluateConfig(Strict):
    """The results stage: what is measured on every finished trial."""

    metric: AnyMetric = Field(default="fd/digits", description="MEASURE/EXTRACTOR, the one that ranks models")
    metrics: tuple[Wanted, ...] = Field(
        default=(),
        description=f"more of them from the same samples, each {METRICS_HELP}; may give `metric` its options",
    )
    num_samples: int = Field(default=10_000, ge=2, description="images of each number")
    repeats: int = Field(
        default=1, ge=1, le=100, description="blocks of num_samples seeds; above 1 a number is their mean, with spread"
    )
    block: int = Field(
        default=BLOCK, ge=1, description="seeds generated and measured together; part of the number's identity"
    )
    nfe: Budgets = Field(default=(1, 2), min_length=1, description="budgets for consistency models")
    teacher_nfe: Budgets = Field(default=(1, TEACHER_NFE), description="budgets for denoisers: 1 (Euler) or odd (Heun)")
    teacher_samplers: tuple[TeacherSampler, ...] = Field(
        default=(), description="more of them for denoisers, each {name: SAMPLER, nfe: BUDGET}"
    )
    times: dict[int, tuple[float, ...]] = Field(
        default={}, description="noise levels for an nfe of 2 and more, descending; by default spread over the grid"
    )

    @property
    def extractor(self) -> str:
        return self.metric.partition("/")[2]

    @property
    def wanted(self) -> tuple[MetricSpec, ...]:
        """All metrics with their options, the one that ranks first."""
        ranking = next((m for m in self.metrics if m.name == self.metric), None) or parse_metric(self.metric)
        return (ranking, *(m for m in self.metrics if m != ranking))

    @field_validator("metrics")
    @classmethod
    def _distinct(cls, value: tuple[MetricSpec, ...]) -> tuple[MetricSpec, ...]:
        names = [m.name for m in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is listed twice; an experiment measures each metric with one set of options")
        return value

    @field_validator("teacher_nfe")
    @classmethod
    def _odd(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for nfe in value:
            if nfe % 2 == 0:
                raise ValueError(f"teacher_nfe {nfe} is even; Heun takes 2 n - 1 evaluations for n steps")
        return value

    @model_validator(mode="after")
    def _times(self) -> EvaluateConfig:
        for nfe, times in self.times.items():
            if nfe not in self.nfe:
                raise ValueError(f"times.{nfe} is given, but nfe is {list(self.nfe)}")
            if len(times) != nfe or any(a <= b for a, b in itertools.pairwise(times)):
                raise ValueError(f"times.{nfe} must be {nfe} descending noise levels, found {list(times)}")
        return self


class SearchConfig(Strict):
    """Greedy search of sampling times, one after the other."""

    nfe: Budgets = Field(default=(2,), min_length=1, description="numbers of steps whose times are searched, from 2")
    num_sigmas: int | None = Field(
        default=None, ge=3, description="points of the grid searched; null takes the model's own N"
    )
    num_samples: int = Field(default=10_000, ge=2, description="images of each candidate, on seeds of the search")
    trials: Literal["best", "all"] = Field(default="best", description="best: of the best model in one step alone")
    mode: Literal["ternary", "section", "exhaustive", "continuous", "reference"] = Field(
        default="ternary",
        description="section cuts with as many candidates as the pool serves, exhaustive tries the whole grid, "
        "continuous searches log sigma; reference asks what the paper's code asks, in its order, and misses either end",
    )
    parallel: int | None = Field(
        default=None,
        ge=1,
        description="candidates of a round of section and continuous; null takes what the pool works on at once",
    )
    tolerance: float | None = Field(
        default=None, gt=0, le=1, description="how finely continuous resolves log sigma; null is 0.05"
    )
    confirm_samples: int | None = Field(
        default=None,
        ge=2,
        description="times within the noise of the best are measured again on so many further samples; null does not",
    )

    @field_validator("nfe")
    @classmethod
    def _several(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(n < 2 for n in value):
            raise ValueError(f"a search needs an nfe of at least 2, found {list(value)}")
        return value

    @model_validator(mode="after")
    def _room(self) -> SearchConfig:
        if self.num_sigmas is not None and max(self.nfe) > self.num_sigmas - 1:
            raise ValueError(f"nfe {max(self.nfe)} needs a grid of more than num_sigmas {self.num_sigmas} points")
        return self

    @model_validator(mode="after")
    def _of_the_mode(self) -> SearchConfig:
        if self.parallel is not None and self.mode not in ("section", "continuous"):
            raise ValueError(f"parallel is {self.parallel}, but mode is {self.mode}; it is for section and continuous")
        if self.tolerance is not None and self.mode != "continuous":
            raise ValueError(f"tolerance is {self.tolerance}, but mode is {self.mode}; it is for continuous")
        if self.num_sigmas is not None and self.mode == "continuous":
            raise ValueError(f"num_sigmas is {self.num_sigmas}, but mode continuous has no grid; give tolerance")
        if self.confirm_samples is not None:
            if self.mode == "reference":
                raise ValueError("confirm_samples is given, but mode reference measures what the reference does, once")
            if self.confirm_samples <= self.num_samples:
                raise ValueError(
                    f"confirm_samples {self.confirm_samples} must be more than num_samples {self.num_samples}"
                )
        return self


class ReportConfig(Strict):
    """How the report draws."""

    x: Literal["step", "nimg"] = Field(default="step", description="axis of curves: training steps, or images seen")


class ExperimentConfig(RunConfig):
    """An experiment file. Without panels it is a single run, as used by `cmray train` and for teachers."""

    name: str = Field(description="of the folder of results: up to 100 letters, digits, '.', '_', '-' and spaces")
    description: str = Field(default="", description="a text for reports and MLflow")
    panels: dict[str, PanelConfig] = Field(default={}, description="name: trials that vary the run; none is one run")
    stopping: StoppingField | None = Field(default=None, description="ends trials early")  # type: ignore[valid-type]
    evaluate: EvaluateConfig | None = Field(default=None, description="what is measured of finished trials")
    search: SearchConfig | None = Field(default=None, description="sampling times to look for; needs evaluate")
    report: ReportConfig = Field(default=ReportConfig(), description="how curves are drawn")

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}", value):
            raise ValueError(f"name {value!r} must be letters, digits, '.', '_', '-' and spaces, as it names a folder")
        if value in RESERVED:
            raise ValueError(
                f"name '{value}' is taken by the storage folder itself; so are {', '.join(sorted(RESERVED))}"
            )
        return value

    @model_validator(mode="after")
    def _stopping_compares(self) -> ExperimentConfig:
        if self.stopping is not None and not self.panels:
            raise ValueError("stopping compares the trials of panels, but the file has none; give panels or leave it")
        return self

    @model_validator(mode="after")
    def _search_is_evaluated(self) -> ExperimentConfig:
        if self.search is not None and self.evaluate is None:
            raise ValueError("search is given, but evaluate is not; searched times are reported through evaluate")
        if self.search is not None and self.search.trials == "best" and self.evaluate and 1 not in self.evaluate.nfe:
            raise ValueError(
                f"search.trials is best, which is the best in one step, but evaluate.nfe is {self.evaluate.nfe}"
            )
        return self


#: fields of an experiment that belong to each of its runs
RUN_FIELDS = frozenset(RunConfig.model_fields)
