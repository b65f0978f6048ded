"""Where results go unless a command or a call says otherwise."""

from __future__ import annotations

import os
from pathlib import Path

STORAGE_VARIABLE = "CMRAY_STORAGE"
DEFAULT_STORAGE = Path("cmray-data")


def default_storage() -> Path:
    """The folder that CMRAY_STORAGE names, else ./cmray-data; absolute."""
    return Path(os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE).expanduser().absolute()
