"""One SQLite store of MLflow for all tests of this folder: making one takes seconds."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mlflow_storage(tmp_path_factory) -> Path:
    """A storage folder whose name has a space; tests use experiments of their own in it."""
    return tmp_path_factory.mktemp("a storage")
