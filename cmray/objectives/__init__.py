"""F2: what is minimised, each objective in its own file beside its config."""

from cmray.objectives.base import (
    Kind,
    Loss,
    Objective,
    ObjectiveConfig,
    ObjectiveContext,
    ObjectiveField,
    Roles,
    Transition,
    objectives,
)

__all__ = [
    "Kind",
    "Loss",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveContext",
    "ObjectiveField",
    "Roles",
    "Transition",
    "objectives",
]
