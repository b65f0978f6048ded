"""Choose the tracker for a tracking URI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cmray.tracking.base import Tracker
from cmray.tracking.mlflow import MlflowTracker
from cmray.tracking.noop import NoopTracker


def make_tracker(uri: str | None, storage: Path, warn: Callable[[str], None]) -> Tracker:
    """The tracker for `uri`: "none" keeps nothing, None is a SQLite store in `storage`, else MLflow at that URI.

    `warn` gets one-line messages about a server that is away. Raises CmrayError for a URI that MLflow cannot use.
    """
    if uri == "none":
        return NoopTracker()
    return MlflowTracker(uri, storage, warn)
