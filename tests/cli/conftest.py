"""A storage folder with trained models, shared by the tests of the command line. They must not change its trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_run import CD, EDM, good, here, write


@dataclass(frozen=True)
class Models:
    storage: Path
    files: Path  # folder of the experiment files
    teacher: str  # EXPERIMENT/TRIAL
    student: str

    @property
    def student_file(self) -> Path:
        return self.files / "student.yaml"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    storage = folder / "storage"
    write(folder / "teacher.yaml", EDM)
    student = write(folder / "student.yaml", CD, teacher={"experiment": "teacher.yaml"})
    ran = good(here("train", student, "--storage", storage, "--tracking-uri", "none", "--json"))
    (teacher,) = (storage / "teacher").glob("edm-*")
    return Models(storage, folder, f"teacher/{teacher.name}", ran.json["trial"])
