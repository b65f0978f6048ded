"""From a checkpoint to a folder in another format."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.engine.model import load_model
from cmray.exchange.base import Exported, Target
from cmray.exchange.importing import check_out
from cmray.tracking.records import Evaluation, Search

R = TypeVar("R", bound=BaseModel)


def exported(
    trial: Path, checkpoint: Path, name: str, weights: str | None = None, licence: str | None = None
) -> Exported:
    """A model with its records, loaded on the CPU.

    Args:
        trial: folder with evaluations/ and searches/.
        weights: "student" or "ema RATE"; by default the first EMA.
        licence: of the weights; None takes that of imported ones.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or has no such weights.
    """
    facts = read_checkpoint_facts(checkpoint)
    model = load_model(checkpoint, torch.device("cpu"), weights)
    known = licence or (facts.origin.licence if facts.origin else None)
    evaluations, searches = _records(trial / "evaluations", Evaluation), _records(trial / "searches", Search)
    return Exported(model, checkpoint, facts, name, evaluations, searches, known)


def export_model(what: Exported, target: Target, out: Path) -> str:
    """Writes the folder, whole or not at all; returns the next useful command with `{out}` for the folder.

    Raises:
        CmrayError: the format cannot express the model, or `out` exists.
    """
    check_out(out)
    target.check(what)
    tmp = out.absolute().parent / f".{out.name}.{uuid.uuid4().hex}"
    tmp.mkdir()
    try:
        following = target.write(what, tmp)
        if out.is_dir():
            out.rmdir()
        os.replace(tmp, out)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return following


def searched_times(what: Exported, nfe: int) -> tuple[float, ...] | None:
    """The noise levels that the newest search of these weights found for a budget, descending; None without one."""
    own = [s for s in what.searches if s.nfe == nfe and s.provenance.weights_sha256 == what.model.weights_sha256]
    return tuple(max(own, key=lambda search: search.time).times) if own else None


def _records(folder: Path, kind: type[R]) -> list[R]:
    """Those that can be read, oldest first; a damaged one is left to `cmray report`, which names it."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(kind.model_validate_json(path.read_text()))
        except (OSError, ValidationError):
            continue
    return found
