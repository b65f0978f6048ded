"""What software made a result."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

from cmray.core.plugins import Plugin, stamps
from cmray.core.version import __version__

RECORDED = ("torch", "ray", "numpy", "mlflow", "pyarrow")

#: stands in a copy of the package that a job carries, as there is no git beside it
REVISION_FILE = "revision.txt"


def versions(plugins: Iterable[Plugin] = ()) -> dict[str, str]:
    """Versions of Python, of the packages that decide results, where installed, and of the plug-ins that took part."""
    return {**_own_versions(), **stamps(plugins)}


@functools.cache
def _own_versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cmray": __version__}  # of the code that runs, if not the installed
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_revision() -> str | None:
    """The commit cmray itself runs from, with "+changes" when the tree differs; None for an installed package.

    A job's copy of the package says what it was copied from.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        noted = root / "cmray" / REVISION_FILE
        return noted.read_text().strip() or None if noted.is_file() else None
    try:

        def git(*args: str) -> str:
            return subprocess.run(
                ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()

        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
