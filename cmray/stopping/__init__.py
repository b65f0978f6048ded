"""F2: rules that end trials early by their curves, each in its own file; they judge values and run nothing."""

from cmray.stopping.base import Curve, StoppingConfig, StoppingField, Verdict, stopping_rules

__all__ = ["Curve", "StoppingConfig", "StoppingField", "Verdict", "stopping_rules"]
