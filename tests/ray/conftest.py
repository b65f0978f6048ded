"""What several files of tests compare with."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> dict[str, Any]:
    """The study of `survival`, to which nothing happened."""
    from survival import made, sweeping

    folder = tmp_path_factory.mktemp("undisturbed")
    with sweeping(folder) as running:
        ran = running.ended()
        running.gone(20)
    assert ran.code == 0, ran.err
    return made(folder)
