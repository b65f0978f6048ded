"""An experiment that is carried away stands for the same trials where it arrives."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cli_run import CD, EDM, ROOT, write

from cmray.config.bundle import bundle_experiment
from cmray.config.load import load_raw
from cmray.config.plan import plan_experiment
from cmray.core.errors import CmrayError, ConfigError

SHIPPED = sorted(p for p in (ROOT / "experiments").glob("*.yaml") if "panels:" in p.read_text())


def study(folder: Path, **fields) -> Path:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    write(folder / "deep" / "teacher.yaml", EDM)
    return write(
        folder / "study.yaml",
        CD,
        teacher={"experiment": "deep/teacher.yaml", "overrides": {"seed": 3}},
        panels={"N": {"grid": {"objective.num_sigmas": [5, 9]}}},
        **fields,
    )


def test_the_same_trials_wherever_it_is(tmp_path, monkeypatch):
    file = study(tmp_path / "here")
    overlay = tmp_path / "here" / "deep" / "short.yaml"
    overlay.write_text("train: {steps: 20}\n")
    packed = bundle_experiment(file, ["seed=7"], [overlay])
    assert packed.name == "study-short"
    assert sorted(packed.texts) == ["study.yaml", "teacher.yaml"]
    away = tmp_path / "away"
    away.mkdir()
    arrived = packed.write(away)
    monkeypatch.chdir(away)
    here = plan_experiment(file, ["seed=7"], tmp_path / "storage", (), [overlay])
    there = plan_experiment(arrived, [], tmp_path / "storage")
    assert [(t.name, t.label, t.panels, t.folder) for t in there.all_trials] == [
        (t.name, t.label, t.panels, t.folder) for t in here.all_trials
    ]
    assert there.config.model_dump(exclude={"teacher"}) == here.config.model_dump(exclude={"teacher"})
    assert str(tmp_path / "here") not in "".join(packed.texts.values()), "a file of the other machine is named"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_experiments_can_be_carried(file, tmp_path):
    packed = bundle_experiment(file)
    arrived = packed.write(tmp_path)
    there, here = load_raw(arrived).values, load_raw(file).values
    for values in (there, here):
        values.get("teacher", {}).pop("experiment", None)
    assert there == here
    for name, text in packed.texts.items():
        values = yaml.safe_load(text)
        assert "extends" not in values
        teacher = (values.get("teacher") or {}).get("experiment")
        assert teacher is None or (tmp_path / teacher).is_file(), f"{name} needs {teacher}"


def test_the_digest_is_of_the_content_and_of_nothing_else(tmp_path):
    one, other = study(tmp_path / "one"), study(tmp_path / "other")
    assert bundle_experiment(one).digest == bundle_experiment(other).digest
    other.write_text("# a comment\n" + other.read_text())
    assert bundle_experiment(one).digest == bundle_experiment(other).digest
    different = {
        bundle_experiment(one, ["seed=4"]).digest,
        bundle_experiment(one, ["train.steps=41"]).digest,
        bundle_experiment(one).digest,
    }
    write(tmp_path / "one" / "deep" / "teacher.yaml", EDM, seed=9)
    assert len(different | {bundle_experiment(one).digest}) == 4, "the teacher counts"


def test_weights_beside_the_working_directory_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.safetensors").write_bytes(b"weights")
    fields = {"evaluate": {"metrics": [{"name": "fd/trained", "extractor": {"path": "data/mine.safetensors"}}]}}
    packed = bundle_experiment(study(tmp_path / "here", **fields))
    (tmp_path / "away").mkdir()
    packed.write(tmp_path / "away")
    assert (tmp_path / "away" / "data" / "mine.safetensors").read_bytes() == b"weights"
    before = packed.digest
    (tmp_path / "data" / "mine.safetensors").write_bytes(b"others")
    assert packed.digest != before
    fields["evaluate"]["metrics"][0]["extractor"]["path"] = "data/../data/mine.safetensors"
    with pytest.raises(CmrayError, match="cannot travel"):
        bundle_experiment(study(tmp_path / "here", **fields))


def test_teachers_that_share_a_name_stay_apart(tmp_path):
    write(tmp_path / "study-.yaml", EDM)
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "study.yaml", EDM, seed=5)
    file = write(tmp_path / "study.yaml", CD, teacher={"experiment": "deep/study.yaml"},
                 panels={"N": {"grid": {"seed": [1, 2]}}})  # fmt: skip
    packed = bundle_experiment(file)
    assert sorted(packed.texts) == ["study-2.yaml", "study.yaml"]
    assert yaml.safe_load(packed.texts["study.yaml"])["teacher"]["experiment"] == "study-2.yaml"
    assert yaml.safe_load(packed.texts["study-2.yaml"])["seed"] == 5


def test_a_circle_of_teachers_ends(tmp_path):
    panels = {"panels": {"N": {"grid": {"seed": [1, 2]}}}}
    file = write(tmp_path / "study.yaml", CD, panels, teacher={"experiment": "a.yaml"})
    write(tmp_path / "a.yaml", CD, teacher={"experiment": "b.yaml"})
    write(tmp_path / "b.yaml", CD, teacher={"experiment": "a.yaml"})
    packed = bundle_experiment(file)
    assert sorted(packed.texts) == ["a.yaml", "b.yaml", "study.yaml"]
    (tmp_path / "away").mkdir()
    with pytest.raises(ConfigError, match="circle"):
        plan_experiment(packed.write(tmp_path / "away"), [], tmp_path / "storage")


def test_what_is_no_sweep_is_not_packed(tmp_path):
    with pytest.raises(ConfigError, match="no panels"):
        bundle_experiment(write(tmp_path / "single.yaml", EDM))
    with pytest.raises(ConfigError, match="does not exist"):
        bundle_experiment(tmp_path / "nothing.yaml")
