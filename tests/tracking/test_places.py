"""What RUN means: a bare checkpoint is its own place wherever it lies, and odd ways to write a path are harmless."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli_run import good, here
from exchange_files import made

from cmray.core.errors import CmrayError
from cmray.tracking.places import Found, find_run

MLP = {"name": "mlp", "width": 16, "depth": 1}
UNTRACKED = ("--tracking-uri", "none")


def bare(desk: Path, name: str) -> Path:
    """A checkpoint checkpoints/NAME, as docs/exchange.md tells to import one."""
    place = desk / "checkpoints" / name
    place.parent.mkdir(exist_ok=True)
    made(desk / name, MLP, (1, 8, 8)).rename(place)
    (desk / name / "checkpoints").rmdir()
    (desk / name).rmdir()
    return place


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def test_a_bare_checkpoint_in_a_folder_called_checkpoints_is_a_place_of_its_own(desk):
    one, two = bare(desk, "one"), bare(desk, "two")
    for text in ("checkpoints/one", "checkpoints/one/", "./checkpoints/one"):
        assert find_run(text, desk / "none") == Found(Path(text), Path(text))
    assert find_run(str(one), desk / "none") == Found(one, one)
    assert find_run(str(two), desk / "none") == Found(two, two)


def test_numbers_of_two_imports_side_by_side_go_into_each_s_own_folder(desk, tmp_path):
    one, two = bare(desk, "one"), bare(desk, "two")
    more = ("--num-samples", 64, "--nfe", 1, "--json", "--storage", tmp_path / "storage", *UNTRACKED)
    (told,) = good(here("evaluate", "checkpoints/one", "--reference-data", "digits", *more)).json
    assert told["weights"] == "ema 0.99"
    assert len(list((one / "evaluations").glob("*.json"))) == 1
    assert sorted(p.name for p in desk.iterdir()) == ["checkpoints"]
    assert sorted(p.name for p in (desk / "checkpoints").iterdir()) == ["one", "two"]
    assert not (two / "evaluations").exists()
    good(here("export", "checkpoints/one", "--format", "safetensors", "--out", "card", *more[-4:]))
    assert "# one\n" in (desk / "card" / "README.md").read_text()


def test_a_checkpoint_of_a_trial_is_the_trial_s_from_wherever_it_is_named(desk, monkeypatch):
    checkpoint = made(desk / "e" / "t", MLP, (1, 8, 8))
    (desk / "e" / "t" / "config.yaml").write_text("seed: 0\n")
    assert find_run(str(checkpoint), desk) == Found(desk / "e" / "t", checkpoint)
    for where in (desk, desk / "e" / "t", desk / "e" / "t" / "checkpoints"):
        monkeypatch.chdir(where)
        text = os.path.relpath(checkpoint, where)
        assert find_run(text, desk).folder == desk / "e" / "t"


def test_a_trailing_slash_changes_nothing(desk):
    checkpoint = made(desk / "e" / "t", MLP, (1, 8, 8))
    (desk / "e" / "t" / "config.yaml").write_text("seed: 0\n")
    for text in ("e/t/", "t/", f"{desk}/e/t/", f"{checkpoint}/"):
        found = find_run(text, desk)
        assert found.folder.resolve() == desk / "e" / "t", text
        assert found.checkpoint.resolve() == checkpoint, text


def test_the_home_of_nobody_is_one_sentence(tmp_path):
    with pytest.raises(CmrayError, match="no trial or checkpoint '~nosuch/x'"):
        find_run("~nosuch/x", tmp_path)
    ran = here("sample", "~nosuch/x", "--out", tmp_path / "x.npz", "--storage", tmp_path)
    assert ran.code == 2
    assert "Traceback" not in ran.err
