"""What every stopping rule answers: at which steps it looks at a trial, and whether the trial goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from cmray.core.registry import ComponentConfig, Registry, component

#: step -> value of the metric there; lower is better
Curve = Mapping[int, float]


@dataclass(frozen=True)
class Verdict:
    """Whether a trial goes on.

    limit: the largest value that goes on; None when there was nothing to compare with.
    known: trials whose values were compared, its own included.
    """

    goes_on: bool
    limit: float | None
    known: int


class StoppingConfig(ComponentConfig):
    """When the trials of a sweep are stopped early. Steps are training steps; of values the lower is the better."""

    grace: int = Field(ge=1, description="training steps before a trial can be stopped")
    metric: str | None = Field(
        default=None, description="a curve by the name of its metric and NFE, such as fd/digits@1; null takes the first"
    )

    def looks(self, steps: int, every: int) -> list[int]:
        """The steps at which a trial of `steps` steps with a curve point every `every` steps is judged, ascending.

        The last step is never among them: there is nothing left to save.
        """
        raise TypeError(f"{type(self).__name__} does not say when it looks")

    def check(self, steps: int, every: int) -> None:
        """Raises ValueError when a trial of so many steps, with a curve point every so many, cannot be judged."""
        if self.grace >= steps:
            raise ValueError(f"stopping.grace {self.grace} is not below train.steps {steps}, so nothing could stop it")

    def verdict(self, step: int, own: Curve, others: Mapping[str, Curve]) -> Verdict:
        """Judges a trial at one of its `looks`.

        Args:
            own: its values up to `step`, the one at `step` included.
            others: the values known of each of the other trials, whether they run or have ended.
        """
        raise TypeError(f"{type(self).__name__} does not judge")


stopping_rules: Registry[StoppingConfig] = Registry("stopping rule", ["cmray.stopping"])
StoppingField = component(stopping_rules, "when trials are ended early")
