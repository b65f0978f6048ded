"""Brings what is measured and searched outside a sweep to the models' runs in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from cmray.cluster.mirror import Mirror
from cmray.core.errors import StorageError
from cmray.core.locks import locked
from cmray.report.load import load_experiment
from cmray.tracking.make import make_tracker

HINT = "what was measured goes to MLflow when it ends, or with the same command again"


class ModelMirror:
    """The runs of some models in every experiment that lists them, found again by the keys that sweeps give them.

    A store is not made for this: where the storage folder has none and no other is named, nothing was ever mirrored,
    and nothing is. A run that is missing in a store that is there is made; a later sweep takes it among its own.

    Args:
        folders: of the models; those that are no trials of `storage`, such as bare checkpoints, have no runs.
        uri: as for sweeps: "none" keeps nothing, None is the store in `storage`.
        warn: gets one line where a store is away or an experiment is in use.

    Raises:
        CmrayError: a URI that MLflow cannot use.
    """

    def __init__(self, folders: Sequence[Path], storage: Path, uri: str | None, warn: Callable[[str], None]):
        self.storage, self._warn = storage, warn
        self._places = _places(folders, storage)
        wanted = uri != "none" and (uri is not None or (storage / "mlflow.db").is_file())
        self._tracker = make_tracker(uri, storage, warn) if wanted and self._places else None
        if self._tracker is not None and (uri is None or uri.startswith("http")):  # elsewhere it would make a store
            self._tracker.warm_up()

    def send(self) -> str | None:
        """Mirrors the records that are on disk; returns where to look at them, None when nothing was mirrored."""
        if self._tracker is None:
            return None
        sent = False
        for experiment, names in self._places.items():
            try:
                homes = {t.folder.parent for t in load_experiment(self.storage, experiment).trials if t.name in names}
                with locked([self.storage / experiment, *sorted(homes)], HINT):  # a sweep writes to these runs
                    record = load_experiment(self.storage, experiment)
                    trials = [t for t in record.trials if t.name in names and t.config]
                    mirror = Mirror(self._tracker)
                    for trial in trials:
                        mirror.model(record, trial, self.storage)
                        sent = True
            except StorageError as error:
                self._warn(str(error))
        self._tracker.close()
        return self._tracker.ui_command() if sent else None


def _places(folders: Sequence[Path], storage: Path) -> dict[str, set[str]]:
    """Names of the trials that have these folders, by the experiments whose plans list them."""
    wanted = {folder.absolute() for folder in folders}
    found: dict[str, set[str]] = {}
    for plan in sorted(storage.glob("*/experiment.json")):
        try:
            entries = json.loads(plan.read_text())["trials"]
            names = {e["name"] for e in entries if (storage / e["experiment"] / e["name"]).absolute() in wanted}
        except (OSError, ValueError, KeyError, TypeError):  # a damaged plan is no concern of this command
            continue
        if names:
            found[plan.parent.name] = names
    return found
