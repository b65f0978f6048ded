"""From a checkpoint to a folder in another format."""

from __future__ import annotations

from pathlib import Path

import torch

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.core.files import beside, check_place
from cmray.engine.model import load_model
from cmray.exchange.base import Exported, Target
from cmray.tracking.records import Evaluation, Search, readable_records


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
    evaluations = readable_records(trial / "evaluations", Evaluation)
    searches = readable_records(trial / "searches", Search)
    return Exported(model, checkpoint, facts, name, evaluations, searches, known)


def export_model(what: Exported, target: Target, out: Path) -> str:
    """Writes the folder, whole or not at all; returns the next useful command with `{out}` for the folder.

    Raises:
        CmrayError: the format cannot express the model, or `out` exists.
    """
    check_place(out, "--out", folder=True)
    target.check(what)
    with beside(out) as tmp:
        tmp.mkdir()
        return target.write(what, tmp)
