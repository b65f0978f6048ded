"""F2: what is minimised, each objective in its own file beside its config."""

from cmray.objectives.base import (
    Loss,
    Objective,
    ObjectiveConfig,
    ObjectiveContext,
    ObjectiveField,
    Roles,
    objectives,
)

__all__ = ["Loss", "Objective", "ObjectiveConfig", "ObjectiveContext", "ObjectiveField", "Roles", "objectives"]
