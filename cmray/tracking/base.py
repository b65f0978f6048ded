"""What a tracker does: mirror the records of an experiment to a place where people look at them.

The records in the storage folder are the truth, and one process, the driver, mirrors them. So every call may be
repeated (by the next `cmray sweep`) without doubling anything, and no call raises because a server is away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cmray.tracking.records import Event

if TYPE_CHECKING:
    from pandas import DataFrame

    from cmray.tracking.served import ServedModel

RunEnd = Literal["finished", "failed", "killed"]


class Tracker(Protocol):
    """A run is named by a `key` that stays the same over all sweeps: the trial's folder name, or one of the parent.

    A key has to be opened first; using one that was not raises KeyError, the one error a call may raise.
    """

    def warm_up(self) -> None:
        """Begin what takes seconds (imports, creating the store) in the background; returns at once."""
        ...

    def start_experiment(self, name: str, description: str = "", tags: Mapping[str, str] | None = None) -> None:
        """Find or make the experiment that the following runs belong to."""
        ...

    def open_run(
        self,
        key: str,
        name: str,
        *,
        parent_key: str | None = None,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> str | None:
        """Find the run with this key, or make it; a run that is not finished is set to running again.

        `params` is the resolved config, nested. A param that was logged before keeps its first value.
        Returns the run's id, None when the tracker has none (noop, or a server that is away).
        """
        ...

    def sync_events(self, key: str, events: Sequence[Event]) -> None:
        """Mirror events. A (metric, step) that the run already has is left out, whatever its time."""
        ...

    def log_metrics(self, key: str, values: Mapping[str, float], step: int, time: float) -> None:
        """Log values at a step; `time` in seconds since the epoch. An equal value at the step is left out."""
        ...

    def log_table(self, key: str, table: DataFrame, artifact_file: str) -> None:
        """Keep a table under a path that ends in .json, replacing the one there."""
        ...

    def log_artifact(self, key: str, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file in `folder`, replacing the one there if its content differs."""
        ...

    def log_text(self, key: str, text: str, artifact_file: str) -> None:
        """Keep a text under a path, replacing the one there if it differs."""
        ...

    def log_dict(self, key: str, values: Mapping[str, Any], artifact_file: str) -> None:
        """Keep values as YAML (.yaml, .yml) or JSON (any other ending) under a path."""
        ...

    def remove_file(self, key: str, artifact_file: str) -> None:
        """Take back a file that is not true of the run any more; nothing where there is none."""
        ...

    def log_dataset(self, key: str, name: str, digest: str, source: str, rows: int) -> None:
        """Say which dataset the run read; `source` is its path or URI, `rows` the number of images."""
        ...

    def register_model(self, key: str, model: ServedModel) -> None:
        """Make `model`, of this run, the best version of its name in the registry; a new version if there is none."""
        ...

    def close_run(self, key: str, status: RunEnd) -> None:
        """Set the end of a run; its key may be opened again later."""
        ...

    def close(self) -> None:
        """Try once more to mirror what a server that was away has missed, and say so if it is still away."""
        ...

    def ui_command(self) -> str | None:
        """The shell command that opens the UI, or a server's URL; None when there is nothing to look at."""
        ...
