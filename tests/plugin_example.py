"""The plug-in of docs/extending.md as if it were installed, in a folder of its own and for other processes only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "extending"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
GROUP = "cmray.plugins"


def install(site: Path, name: str, version: str, points: dict[str, str]) -> Path:
    """Makes `site` a folder with the metadata that pip would write for a package with these entry points."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    return site


def install_example(site: Path) -> Path:
    install(site, PROJECT["name"], PROJECT["version"], PROJECT["entry-points"][GROUP])
    shutil.copytree(EXAMPLE / "cmray_plugin_example", site / "cmray_plugin_example")
    return site


def environment(*folders: Path, **more: str) -> dict[str, str]:
    """For a process that finds packages in these folders too, and this tree before any installed cmray."""
    path = os.pathsep.join([str(ROOT), *map(str, folders)])
    kept = {k: v for k, v in os.environ.items() if k not in ("CMRAY_PLUGINS", "CMRAY_STORAGE", "RAY_ADDRESS")}
    return {**kept, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": "none", "OMP_NUM_THREADS": "1", **more}


def python(cwd: Path, env: dict[str, str], *words: object, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)
