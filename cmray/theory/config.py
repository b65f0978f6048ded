"""What a theory file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from cmray.config.load import load_raw, validated
from cmray.core.errors import ConfigError
from cmray.core.strict import Strict
from cmray.solvers import SolverField


class MixtureConfig(Strict):
    """Data in one dimension: a mixture of Gaussians. One component is a Gaussian."""

    means: tuple[float, ...] = Field(min_length=1, description="of each component")
    stds: tuple[float, ...] = Field(min_length=1, description="standard deviation of each component, positive")
    shares: tuple[float, ...] = Field(min_length=1, description="of each component; they need not sum to 1")

    @model_validator(mode="after")
    def _agree(self) -> MixtureConfig:
        if not len(self.means) == len(self.stds) == len(self.shares):
            raise ValueError(
                f"means, stds and shares must be equally many, found {len(self.means)}, {len(self.stds)} and "
                f"{len(self.shares)}"
            )
        if min(self.stds) <= 0 or min(self.shares) <= 0:
            raise ValueError("stds and shares must be positive")
        return self


class TheoryNoise(Strict):
    """The Karras curve."""

    sigma_min: float = Field(0.02, gt=0, description="the lowest noise level")
    sigma_max: float = Field(10.0, gt=0, description="the highest noise level")
    rho: float = Field(7.0, gt=0, description="spacing of the levels between them")

    @model_validator(mode="after")
    def _ordered(self) -> TheoryNoise:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self


class TheoryConfig(Strict):
    """Which data, which solvers, which numbers of intervals N - 1."""

    data: dict[str, MixtureConfig] = Field(min_length=1, description="name -> mixture")
    noise: TheoryNoise = Field(
        TheoryNoise(sigma_min=0.02, sigma_max=10.0, rho=7.0), description="the range of noise levels"
    )
    solvers: tuple[SolverField, ...] = Field(min_length=1, description="those of Theorem 1")  # type: ignore[valid-type]
    intervals: tuple[int, ...] = Field(min_length=3, description="N - 1, ascending")
    nodes: int = Field(24, ge=4, description="Gauss-Hermite nodes per integral over data and over noise")

    @model_validator(mode="after")
    def _ascending(self) -> TheoryConfig:
        if list(self.intervals) != sorted(set(self.intervals)) or self.intervals[0] < 1:
            raise ValueError(f"intervals must be positive and ascending, found {list(self.intervals)}")
        return self


class TheoryFile(Strict):
    """A file for `cmray theory`."""

    name: str = Field(min_length=1, description="of the folder of results")
    description: str = Field("", description="a text for people")
    theory: TheoryConfig = Field(description="what is measured")


def load_theory(path: Path, overrides: list[str]) -> TheoryFile:
    """Reads a theory file. Raises ConfigError that names file, field and what is allowed."""
    raw = load_raw(path, overrides)
    if "theory" not in raw.values:
        raise ConfigError(f"{path} is no theory file: it has no theory; for experiments run: cmray sweep {path}")
    values: dict[str, Any] = raw.values
    return validated(TheoryFile, values, raw)
