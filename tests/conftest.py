"""Being here puts tests/ on the path, so that tests of several rooms share `gaussian_truth`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

# A machine that is busy with something else is no failure of the code.
settings.register_profile("cmray", deadline=None)
settings.load_profile("cmray")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--of-plugins", action="store_true", help="of the tests that run over all components those with a plug-in's"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--of-plugins"):
        return
    from cmray.core.errors import CmrayError
    from cmray.core.registry import from_plugins

    try:
        names = {name for _, _, name in from_plugins()}
    except CmrayError as error:
        raise pytest.UsageError(str(error)) from None
    if not names:
        raise pytest.UsageError("--of-plugins: no plug-in is here; install one, or name its file in CMRAY_PLUGINS")
    chosen = [item for item in items if _mentions(getattr(getattr(item, "callspec", None), "params", {}), names)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def _mentions(value: Any, names: set[str]) -> bool:
    """Whether the name of a component stands anywhere in a test's parameters."""
    if isinstance(value, str):
        return value in names
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(_mentions(each, names) for each in inner)
