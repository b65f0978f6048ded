"""The result of a finished training, as a file."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.core.errors import CheckpointError
from cmray.core.files import write_atomic
from cmray.tracking.records import Result

RESULT = "result.json"


def write_result(folder: Path, result: Result) -> None:
    write_atomic(folder / RESULT, result.model_dump_json(indent=1))


def read_result(folder: Path) -> Result | None:
    """The result of a finished trial whose last checkpoint is still there, else None."""
    try:
        result = Result.model_validate_json((folder / RESULT).read_text())
        read_checkpoint_facts(folder / "checkpoints" / result.checkpoint)
    except (OSError, ValidationError, CheckpointError):
        return None
    return result
