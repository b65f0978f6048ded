"""Where results go unless a command or a call says otherwise."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

STORAGE_VARIABLE = "CMRAY_STORAGE"
DEFAULT_STORAGE = Path("cmray-data")


def named_storage(given: str | PathLike[str] | None = None) -> str:
    """A folder or a URL: what is given, else what CMRAY_STORAGE says, else cmray-data."""
    return os.fspath(given) if given is not None else os.environ.get(STORAGE_VARIABLE) or str(DEFAULT_STORAGE)


def default_storage() -> Path:
    """The folder that CMRAY_STORAGE names, else ./cmray-data; absolute."""
    return Path(named_storage()).expanduser().absolute()
