"""A tracker that keeps nothing: for tests, and for `--tracking-uri none`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmray.tracking.base import RunEnd
from cmray.tracking.records import Event

if TYPE_CHECKING:
    from pandas import DataFrame

    from cmray.tracking.served import ServedModel


class NoopTracker:
    """Does nothing, but like every tracker raises KeyError for a run that was not opened."""

    def __init__(self) -> None:
        self._opened: set[str] = set()

    def _check(self, key: str) -> None:
        if key not in self._opened:
            raise KeyError(key)

    def warm_up(self) -> None: ...

    def start_experiment(self, name: str, description: str = "", tags: Mapping[str, str] | None = None) -> None: ...

    def open_run(
        self,
        key: str,
        name: str,
        *,
        parent_key: str | None = None,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> str | None:
        if parent_key is not None:
            self._check(parent_key)
        self._opened.add(key)
        return None

    def sync_events(self, key: str, events: Sequence[Event]) -> None:
        self._check(key)

    def log_metrics(self, key: str, values: Mapping[str, float], step: int, time: float) -> None:
        self._check(key)

    def log_table(self, key: str, table: DataFrame, artifact_file: str) -> None:
        self._check(key)

    def log_artifact(self, key: str, path: Path, folder: str | None = None) -> None:
        self._check(key)

    def log_text(self, key: str, text: str, artifact_file: str) -> None:
        self._check(key)

    def log_dict(self, key: str, values: Mapping[str, Any], artifact_file: str) -> None:
        self._check(key)

    def remove_file(self, key: str, artifact_file: str) -> None:
        self._check(key)

    def log_dataset(self, key: str, name: str, digest: str, source: str, rows: int) -> None:
        self._check(key)

    def register_model(self, key: str, model: ServedModel) -> None:
        self._check(key)

    def close_run(self, key: str, status: RunEnd) -> None:
        self._check(key)

    def close(self) -> None: ...

    def ui_command(self) -> str | None:
        return None
