"""Finds what a user means by RUN: on the command line and in `cmray.load`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cmray.core.errors import CmrayError, nearest
from cmray.engine.remote import shown


@dataclass(frozen=True)
class Found:
    """A trial's folder and the checkpoint to use."""

    folder: Path
    checkpoint: Path


def find_run(text: str, storage: Path, tracking_uri: str | None = None) -> Found:
    """EXPERIMENT/TRIAL, a trial's name or a beginning of it, an MLflow run id, or a checkpoint's or trial's folder.

    In an object store it looks at what is there now.

    Raises:
        CmrayError: nothing or several trials match, or the trial has no checkpoint yet.
    """
    from cmray.engine.remote_sync import refresh_all

    refresh_all(storage)
    text = text.rstrip("/") or text
    path = _expanded(text)
    if (path / "meta.json").is_file():
        trial = path.absolute().parent.parent
        return Found(trial if path.parent.name == "checkpoints" and (trial / "config.yaml").is_file() else path, path)
    if (path / "config.yaml").is_file():
        return _checkpoint(path)
    folders = {f"{p.parent.parent.name}/{p.parent.name}": p.parent for p in sorted(storage.glob("*/*/config.yaml"))}
    exact = [p for name, p in folders.items() if text in (name, p.name)]
    matches = exact or [p for name, p in folders.items() if p.name.startswith(text) or name.startswith(text)]
    if len(matches) == 1:
        return _checkpoint(matches[0])
    if len(matches) > 1:
        names = ", ".join(f"{p.parent.name}/{p.name}" for p in matches[:6])
        raise CmrayError(
            f"'{text}' is the beginning of {len(matches)} trials in {shown(storage)}: {names}; write more of it"
        )
    store_is_there = tracking_uri is not None or (storage / "mlflow.db").is_file()  # asking would make one
    if re.fullmatch(r"[0-9a-f]{32}", text) and store_is_there:
        from cmray.tracking.mlflow import trial_of_run

        name = trial_of_run(text, tracking_uri, storage)
        if name in folders:
            return _checkpoint(folders[name])
    raise CmrayError(f"no trial or checkpoint '{text}' in {shown(storage)}; {nearest(text, folders)}")


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # of somebody who is not known here
        return Path(text)


def _checkpoint(folder: Path) -> Found:
    from cmray.engine.checkpoint import newest_checkpoint
    from cmray.engine.remote import fetch_checkpoint
    from cmray.engine.result import read_result

    result = read_result(folder)
    if result is not None:
        return Found(folder, folder / "checkpoints" / result.checkpoint)
    for manifest in sorted(folder.glob("checkpoints/step-*/meta.json")):  # of a trial in a store, only these are here
        fetch_checkpoint(manifest.parent)
    newest = newest_checkpoint(folder / "checkpoints", lambda _: None)
    if newest is None:
        raise CmrayError(f"{folder.parent.name}/{folder.name} has no whole checkpoint yet")
    return Found(folder, newest[1])
