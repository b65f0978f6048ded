"""F3: weights that others trained become checkpoints here, and checkpoints become files that others read."""

from cmray.exchange.base import Exported, Foreign, MismatchError, Source, Target, sources, targets

__all__ = ["Exported", "Foreign", "MismatchError", "Source", "Target", "sources", "targets"]
