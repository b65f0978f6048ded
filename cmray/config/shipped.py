"""Where the experiment files are that come with cmray."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from cmray.core.errors import ConfigError

#: where a wheel puts them, below the prefix that it is installed in
PLACE = "share/cmray/experiments/"


def shipped_experiments() -> dict[str, Path]:
    """The files by their paths below experiments/, those of this tree or of the installed wheel.

    Raises:
        ConfigError: neither has any.
    """
    beside = Path(__file__).resolve().parents[2]
    for tree in (beside / "experiments", beside / PLACE):  # the second after `pip install --target`
        if (tree / "quickstart.yaml").is_file():
            return {path.relative_to(tree).as_posix(): path for path in sorted(tree.rglob("*.yaml"))}
    found = {}
    for file in metadata.files("cmray") or []:
        _, place, name = file.as_posix().partition(PLACE)
        path = Path(str(file.locate()))
        if place and path.is_file():
            found[name] = path.resolve()
    if not found:
        raise ConfigError("this installation of cmray came without experiment files; install its wheel, or use a clone")
    return dict(sorted(found.items()))
