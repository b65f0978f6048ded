"""What several files of tests compare with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ray_cluster import Cluster


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    """A cluster of a head without CPUs, whose nodes come and go as the test says."""
    from ray_cluster import Cluster

    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


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
