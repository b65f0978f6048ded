"""`cmray init`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmray.cli.console import print_json, say
from cmray.cli.options import Json

if TYPE_CHECKING:
    from cmray.cli.documents import Copied


#: the file to begin with
START = "quickstart.yaml"


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder, or an empty one.")] = Path(
        "experiments"
    ),
    as_json: Json = False,
) -> None:
    """Copy the experiment files that come with cmray, to run and to change: presets, overlays, the paper's figures.

    Example: cmray init experiments
    """
    from cmray.config.shipped import shipped_experiments
    from cmray.core.files import beside, check_place

    check_place(folder, "FOLDER", folder=True)
    files = shipped_experiments()
    there = folder.is_dir()  # it stays the folder that somebody may stand in
    with beside(folder / ".copied" if there else folder) as copy:
        for name, source in files.items():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    if there:
        for path in (folder / ".copied").iterdir():
            path.rename(folder / path.name)
        (folder / ".copied").rmdir()
    if as_json:
        told: Copied = {"folder": str(folder.absolute()), "files": list(files)}
        print_json(told)
        return
    say(f"{len(files)} experiment files in {folder}; next: {shlex.join(['cmray', 'sweep', str(folder / START)])}")
