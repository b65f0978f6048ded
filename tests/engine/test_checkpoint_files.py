"""Checkpoints are there whole or not at all; damaged ones are named and the one before is used."""

import json
import os

import pytest
import torch
from small_run import checkpoint, go, small
from train_worker import StopsAt

from cmray.config.checkpoint_facts import META, CheckpointFacts, ema_file
from cmray.core.errors import CheckpointError
from cmray.engine.checkpoint import checkpoints, load_part, newest_checkpoint, save_checkpoint, verify
from cmray.engine.session import PlainSession

RUN = small()


def facts(step: int) -> CheckpointFacts:
    return CheckpointFacts(
        step=step,
        nimg=8 * step,
        seconds=0.5,
        shape=(1, 8, 8),
        num_classes=0,
        run_config=RUN.model_dump(mode="json"),
        files={},
        scalars={},
    )


def parts(value: float = 0.0) -> dict[str, dict[str, torch.Tensor]]:
    return {"student.safetensors": {"w": torch.full((3,), value)}, ema_file(0.999): {"w": torch.full((3,), -value)}}


def test_what_is_saved_is_read_back(tmp_path):
    path = save_checkpoint(tmp_path, parts(2.0), facts(7), keep=2)
    assert path.name == "step-00000007"
    found, where = newest_checkpoint(tmp_path, pytest.fail)
    assert where == path
    assert (found.step, found.nimg, found.shape, found.run) == (7, 56, (1, 8, 8), RUN)
    assert set(found.files) == set(parts())
    back = load_part(path, "student.safetensors", found.files["student.safetensors"])
    assert torch.equal(back["w"], torch.full((3,), 2.0))
    assert found.weights_sha256 == found.files[ema_file(0.999)]


def test_the_newest_few_are_kept(tmp_path):
    for step in (1, 2, 10, 9):
        save_checkpoint(tmp_path, parts(), facts(step), keep=2)
    assert [f.step for f, _ in checkpoints(tmp_path)] == [10, 9]
    save_checkpoint(tmp_path, parts(), facts(100_000_000), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-100000000"]


def test_the_newest_is_that_of_the_highest_step_not_of_the_last_name(tmp_path):
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, parts(), facts(step), keep=5)
    assert newest_checkpoint(tmp_path, pytest.fail)[0].step == 100_000_000


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"zz.safetensors": {"w": "no tensor"}}, "str"),
        ({"no/such/folder.safetensors": {"w": torch.zeros(1)}}, "No such file"),
    ],
    ids=["a part that is no tensor", "a part that cannot be written"],
)
def test_a_save_that_fails_midway_leaves_what_was_there(tmp_path, bad, says):
    save_checkpoint(tmp_path, parts(1.0), facts(1), keep=2)
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for step in (1, 2):  # a new one, and one in the place of another
        with pytest.raises(Exception, match=says):
            save_checkpoint(tmp_path, {**parts(2.0), **bad}, facts(step), keep=1)
    assert {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_what_a_killed_process_left_is_cleared_by_the_next_save(tmp_path):
    (tmp_path / ".step-00000003.0123abcd").mkdir()
    (tmp_path / ".step-00000003.0123abcd" / "student.safetensors").write_bytes(b"half")
    save_checkpoint(tmp_path, parts(), facts(4), keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_a_process_killed_while_it_removes_leaves_nothing_that_looks_damaged(tmp_path, monkeypatch):
    """The old one, and that of the same step, are out of sight before the first of their files goes."""

    def killed(folder, **_):
        (folder / META).unlink(missing_ok=True)

    for step in (1, 2):
        save_checkpoint(tmp_path, parts(), facts(step), keep=2)
    monkeypatch.setattr("cmray.engine.checkpoint.shutil.rmtree", killed)
    for step in (3, 3):
        save_checkpoint(tmp_path, parts(), facts(step), keep=2)
    monkeypatch.undo()
    assert [f.step for f, _ in checkpoints(tmp_path, pytest.fail)] == [3, 2]
    assert len(list(tmp_path.iterdir())) == 4, "two were to be removed"
    save_checkpoint(tmp_path, parts(), facts(4), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "flipped byte": lambda c: flip(c / "student.safetensors"),
    "truncated": lambda c: os.truncate(c / ema_file(0.999), 20),
    "missing part": lambda c: (c / ema_file(0.999)).unlink(),
    "missing meta": lambda c: (c / META).unlink(),
    "empty meta": lambda c: (c / META).write_text(""),
    "half a meta": lambda c: os.truncate(c / META, (c / META).stat().st_size // 2),
    "meta of a newer cmray": lambda c: (c / META).write_text(json.dumps({"format_version": 2})),
    "a meta that names no weights": lambda c: (c / META).write_text(
        (c / META).read_text().replace('"ema-0.999.safetensors"', '"ema-0.9.safetensors"')
    ),
    "no text": lambda c: (c / META).write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_newest_is_named_and_the_one_before_used(tmp_path, damage):
    save_checkpoint(tmp_path, parts(1.0), facts(1), keep=5)
    newest = save_checkpoint(tmp_path, parts(2.0), facts(2), keep=5)
    damage(newest)
    told = []
    found, path = newest_checkpoint(tmp_path, told.append)
    assert (found.step, path.name) == (1, "step-00000001")
    assert len(told) == 1
    assert told[0].startswith("skipped a damaged checkpoint: ")
    assert str(newest) in told[0]
    assert "\n" not in told[0]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_training_goes_on_from_the_one_before_to_the_same_weights(tmp_path, damage):
    """Steps 4 to 6 are trained again: the events and weights are those of a run in which nothing was damaged."""
    run = small({"train.checkpoint_every": 2, "train.keep_checkpoints": 3, "train.log_every": 1})
    go(run, tmp_path / "whole")
    stopped = small({"train.checkpoint_every": 2, "train.keep_checkpoints": 3, "train.log_every": 1})
    outcome = go(stopped, tmp_path / "hurt", session=StopsAt(PlainSession(torch.device("cpu")), 0, 5))
    assert (outcome.status, outcome.step) == ("stopped", 5)
    damage(checkpoint(tmp_path / "hurt"))
    told = []
    assert go(run, tmp_path / "hurt", warn=told.append).status == "finished"
    assert len(told) == 1
    assert "step-00000005" in told[0]
    one, two = (
        {p.name: p.read_bytes() for p in checkpoint(tmp_path / n).glob("*.safetensors")} for n in ("whole", "hurt")
    )
    assert one == two
    steps = [json.loads(line)["step"] for line in (tmp_path / "hurt" / "events.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_when_all_are_damaged_training_starts_anew(tmp_path):
    run = small({"train.steps": 2})
    go(run, tmp_path)
    whole = (checkpoint(tmp_path) / "student.safetensors").read_bytes()
    flip(checkpoint(tmp_path) / "student.safetensors")
    told = []
    go(run, tmp_path, warn=told.append)
    assert told
    assert (checkpoint(tmp_path) / "student.safetensors").read_bytes() == whole


def test_verify_and_load_name_the_part(tmp_path):
    path = save_checkpoint(tmp_path, parts(), facts(1), keep=1)
    found = newest_checkpoint(tmp_path, pytest.fail)[0]
    flip(path / "student.safetensors")
    with pytest.raises(CheckpointError, match=r"student\.safetensors changed after it was written"):
        verify(found, path)
    with pytest.raises(CheckpointError, match=r"student\.safetensors changed after it was written"):
        load_part(path, "student.safetensors", found.files["student.safetensors"])
    (path / "student.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"student\.safetensors cannot be read"):
        load_part(path, "student.safetensors", found.files["student.safetensors"])


def test_nothing_there_is_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none", pytest.fail) is None
    (tmp_path / "notes.txt").write_text("x")
    assert newest_checkpoint(tmp_path, pytest.fail) is None
