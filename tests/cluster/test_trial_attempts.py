"""Errors of trials are kept, attempts are counted, a request to stop is heeded, and time is up when it is up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cli_run import CT, here, write
from small_run import CPU, go, small

from cmray.cluster.budget import Budget, OutOfTime, Timed
from cmray.cluster.observer import Observer
from cmray.cluster.spec import TrialSpec
from cmray.cluster.work import TrialFailedError, TuneSession, attempted, note_failure
from cmray.core.errors import CmrayError
from cmray.engine.stop import EVERY, StopFile, ask_to_stop, clear_stop


def spec(folder: Path, retries: int) -> TrialSpec:
    run = small(resources={"retries": retries})
    folder.mkdir(parents=True, exist_ok=True)
    return TrialSpec("ct-1", run.model_dump(mode="json"), str(folder), None)


class Fails:
    def __init__(self, times: int):
        self.left = times

    def __call__(self) -> str:
        if self.left:
            self.left -= 1
            raise CmrayError(f"the loss is nan [{self.left} to go]")
        return "done"


@pytest.mark.parametrize(("retries", "failures"), [(0, 0), (2, 2), (2, 1)])
def test_an_attempt_that_succeeds_leaves_no_error_but_those_kept(tmp_path, retries, failures):
    assert attempted(spec(tmp_path, retries), Fails(failures)) == "done"
    assert not (tmp_path / "error.txt").exists()
    assert len(list((tmp_path / "errors").glob("*.txt")) if failures else []) == failures
    if failures:
        assert "attempt 1 failed: the loss is nan" in (tmp_path / "log.txt").read_text()


def test_the_last_error_is_that_of_the_trial_and_all_are_kept_whole(tmp_path):
    fails = Fails(5)
    assert attempted(spec(tmp_path, 2), fails) is None
    assert fails.left == 2, "three attempts"
    first, *_ = (tmp_path / "error.txt").read_text().splitlines()
    assert first == "the loss is nan [2 to go] (attempt 3; all of them in errors/)"
    assert sorted(p.name for p in (tmp_path / "errors").iterdir()) == ["1.txt", "2.txt", "3.txt"]
    for number, left in ((1, 4), (2, 3), (3, 2)):
        text = (tmp_path / "errors" / f"{number}.txt").read_text()
        assert text.startswith(f"the loss is nan [{left} to go]\n\nTraceback")
        assert "in __call__" in text


def test_later_sweeps_add_their_errors(tmp_path):
    one = spec(tmp_path, 0)
    attempted(one, Fails(1))
    attempted(one, Fails(1))
    assert note_failure(one, ValueError("first line\nsecond")) == "ValueError: first line"
    assert note_failure(one, TrialFailedError("elsewhere", "Traceback of a worker")) == "elsewhere"
    assert sorted(p.name for p in (tmp_path / "errors").iterdir()) == [f"{i}.txt" for i in (1, 2, 3, 4)]
    assert (tmp_path / "error.txt").read_text() == "elsewhere\n\nTraceback of a worker"


def test_a_run_that_diverges_is_tried_again_and_its_errors_are_kept(tmp_path):
    file = write(
        tmp_path / "run.yaml", CT, train={"optimizer": {"lr": 1e12}}, resources={"retries": 1}, curve={"every": 40}
    )
    ran = here("train", file, "--storage", tmp_path / "storage", "--tracking-uri", "none", "--json")
    assert ran.code == 1
    (folder,) = (tmp_path / "storage" / "run").glob("ct-*")
    assert len(list((folder / "errors").iterdir())) == 2
    assert "attempt 1 failed: the loss is" in ran.err


def test_a_request_in_the_folder_ends_the_loop_with_a_checkpoint(tmp_path):
    run = small({"train.steps": 100_000, "train.checkpoint_every": 100_000})
    session = TuneSession(CPU, tmp_path)
    ask_to_stop(tmp_path, "a test")
    outcome = go(run, tmp_path, session=session)
    assert outcome.status == "stopped"
    assert outcome.step >= 1
    assert (tmp_path / "checkpoints" / f"step-{outcome.step:08d}").is_dir()
    clear_stop(tmp_path)
    clear_stop(tmp_path)


def test_the_file_is_looked_for_now_and_then_and_asked_for_good(tmp_path, monkeypatch):
    file = StopFile(tmp_path)
    assert not file.asked()
    ask_to_stop(tmp_path, "a test")
    assert not file.asked(), "looked too soon"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + EVERY)
    assert file.asked()
    clear_stop(tmp_path)
    assert file.asked()


def test_a_budget_ends_counted_work_at_its_next_piece():
    seen = []

    class Sees(Observer):
        def task(self, title, done, total):
            seen.append(done)

    assert not Budget().over
    assert not Budget(1).over
    spent = Budget(1, began=time.monotonic() - 3600)
    assert spent.over
    Timed(Sees(), Budget(1)).task("t", 1, 3)
    timed = Timed(Sees(), spent)
    timed.task("t", 3, 3)  # the last piece is done anyway
    for done, total in ((1, 3), (1, None)):
        with pytest.raises(OutOfTime):
            timed.task("t", done, total)
    assert seen == [1, 3, 1, 1]
