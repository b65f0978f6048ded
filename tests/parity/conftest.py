"""Reference numbers kept beside the project, see ../shared/golden/README.md. Absent ones skip their tests."""

import json
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"


@pytest.fixture(scope="session")
def golden():
    """golden(file name) -> its arrays or its JSON."""

    def load(name):
        path = GOLDEN / name
        if not path.is_file():
            pytest.skip(f"no reference numbers: {path} is absent")
        return json.loads(path.read_text()) if path.suffix == ".json" else np.load(path)

    return load
