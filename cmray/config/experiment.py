"""The typed configuration of an experiment: a run, the panels that vary it, and what is done with the results."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cmray.config.fields import METRIC_HELP, Budgets, Metric, extractor_of
from cmray.config.run import RunConfig
from cmray.core.rng import numpy_generator
from cmray.core.strict import Strict

#: entries of the storage folder that are no experiments
RESERVED = frozenset({"datasets", "reference", "mlartifacts", "mlflow.db"})


class Draw(Strict):
    """One random field: exactly one of the three."""

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)

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
        return self

    def value(self, u: float) -> Any:
        """The drawn value for u in [0, 1)."""
        if self.uniform is not None:
            low, high = self.uniform
            return low + u * (high - low)
        if self.log_uniform is not None:
            low, high = map(math.log, self.log_uniform)
            return math.exp(low + u * (high - low))
        assert self.choice is not None
        return self.choice[int(u * len(self.choice))]


class RandomConfig(Strict):
    """`count` points, each field drawn on its own."""

    count: int = Field(ge=1, le=10_000)
    seed: int = Field(default=0, ge=0)
    fields: dict[str, Draw] = Field(min_length=1)

    def points(self) -> list[dict[str, Any]]:
        rng = numpy_generator("random panel", self.seed)
        return [{key: draw.value(rng.random()) for key, draw in self.fields.items()} for _ in range(self.count)]


class PanelConfig(Strict):
    """A group of trials: `base` on the experiment, then every combination of `grid` with every point."""

    base: dict[str, Any] = Field(default={}, description="fields of a run, merged over the experiment's")
    grid: dict[str, list[Any]] = Field(default={}, description="dotted field: values; all combinations")
    points: list[dict[str, Any]] = Field(default=[], description="dotted fields of single trials")
    random: RandomConfig | None = None

    @field_validator("grid")
    @classmethod
    def _values(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in value.items():
            if not values:
                raise ValueError(f"grid.{key} is empty; give at least one value")
        return value


class EvaluateConfig(Strict):
    """The results stage: what is measured on every finished trial."""

    metric: Metric = Field(default="fd/digits", description=METRIC_HELP)
    num_samples: int = Field(default=10_000, ge=2)
    block: int = Field(
        default=256, ge=1, description="seeds generated and measured together; part of the number's identity"
    )
    nfe: Budgets = Field(default=(1, 2), min_length=1, description="budgets for consistency models")
    teacher_nfe: Budgets = Field(default=(1, 35), description="budgets for denoisers: 1 (Euler) or odd (Heun)")
    times: dict[int, tuple[float, ...]] = Field(
        default={}, description="noise levels for an nfe of 2 and more, descending; by default spread over the grid"
    )

    @property
    def extractor(self) -> str:
        return extractor_of(self.metric)

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
    """Greedy search of sampling times on a grid of noise levels."""

    nfe: Budgets = Field(default=(2,), min_length=1)
    num_sigmas: int | None = Field(
        default=None, ge=3, description="points of the grid searched; null takes the model's own N"
    )
    num_samples: int = Field(default=10_000, ge=2)
    trials: Literal["best", "all"] = "best"
    mode: Literal["exact", "reference"] = Field(
        default="exact", description="reference asks what the paper's code asks, in its order, and misses either end"
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


class ReportConfig(Strict):
    x: Literal["step", "nimg"] = "step"


class ExperimentConfig(RunConfig):
    """An experiment file. Without panels it is a single run, as used by `cmray train` and for teachers."""

    name: str
    description: str = ""
    panels: dict[str, PanelConfig] = Field(default={})
    evaluate: EvaluateConfig | None = None
    search: SearchConfig | None = None
    report: ReportConfig = ReportConfig()

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
