"""Errors a user can act on: one sentence, no traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CmrayError(Exception):
    """Something the user can mend. The message is one sentence that says what was found and what is allowed."""

    exit_code = 2


class ConfigError(CmrayError):
    """An experiment file, an override or a combination of fields that cannot run."""


class DataError(CmrayError):
    """A dataset folder that is missing, damaged or of another kind than the run needs."""


class MissingDataError(DataError):
    """A dataset that is not there yet, and could be prepared."""


class MissingWeightsError(DataError):
    """A file of weights that is not here.

    Args:
        file: its name.
        trained: whether it is the user's own, made by `cmray features train`.
    """

    def __init__(self, message: str, file: str = "", trained: bool = False):
        super().__init__(message)
        self.file, self.trained = file, trained


class CheckpointError(CmrayError):
    """A checkpoint that is missing, damaged or belongs to another network."""


class StorageError(CmrayError):
    """A storage folder that cannot be written or is in use by another process."""


class UnknownNameError(ConfigError):
    """A component name that no module registers."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A clause such as ``did you mean 'heun'? (allowed: euler, heun)`` for a name that is not in `allowed`."""
    options = sorted(allowed)
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}(allowed: {', '.join(options) if options else 'nothing'})"
