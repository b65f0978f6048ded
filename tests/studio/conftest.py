"""A storage folder with small trained models, and a shelf of them. Tests must not change its trials."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_run import CD, CT, EDM, good, here, write

from cmray.studio.shelf import Place, Shelf, open_shelf
from cmray.tracking.places import find_run

LABELS = {"ct": "ct · N=9", "cd": "cd · N=9", "edm": "edm"}


@dataclass(frozen=True)
class Models:
    storage: Path
    teacher: str  # EXPERIMENT/TRIAL
    student: str
    direct: str
    classes: str  # class-conditional

    def shelf(self, *names: str, weights: str | None = None) -> Shelf:
        found = [find_run(name, self.storage) for name in names]
        places = [Place(one.folder, one.checkpoint) for one in found]
        return open_shelf(places, self.storage, weights, command)


def command(words: Sequence[str]) -> str:
    return shlex.join(["cmray", *words])


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("studio-models")
    storage = folder / "storage"
    write(folder / "teacher.yaml", EDM)

    def trained(name: str, *layers: dict, **fields: object) -> str:
        file = write(folder / f"{name}.yaml", *layers, **fields)
        return good(here("train", file, "--storage", storage, "--tracking-uri", "none", "--json")).json["trial"]

    student = trained("student", CD, teacher={"experiment": "teacher.yaml"})
    direct = trained("direct", CT)
    classes = trained("classes", CT, net={"class_conditional": True})
    (teacher,) = (storage / "teacher").glob("edm-*")
    # what a sweep would have written of them
    trials = [
        {
            "name": name.partition("/")[2], "label": LABELS[objective], "role": role, "panels": [],
            "objective": objective, "experiment": name.partition("/")[0],
        }
        for name, objective, role in (
            (f"teacher/{teacher.name}", "edm", "teacher"), (student, "cd", "trial"), (direct, "ct", "trial")
        )
    ]  # fmt: skip
    (storage / "all").mkdir()
    plan = {"name": "all", "metric": "fd/digits", "trials": trials}
    (storage / "all" / "experiment.json").write_text(json.dumps(plan))
    return Models(storage, f"teacher/{teacher.name}", student, direct, classes)


@pytest.fixture
def shelf(models) -> Shelf:
    return models.shelf(models.student, models.direct, models.teacher, models.classes)
