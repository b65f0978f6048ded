"""The quickstart itself: what the README promises of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_run import ROOT, Ran, Running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FILE = ROOT / "experiments" / "quickstart.yaml"


@dataclass
class Quickstart:
    storage: Path
    first: Ran
    seconds: float
    peak: int  # bytes, the sum of proportional set sizes

    @property
    def trials(self) -> list[dict[str, Any]]:
        return self.first.json["trials"]

    @property
    def table(self) -> bytes:
        return (self.storage / "quickstart" / "report" / "table.csv").read_bytes()


def memory(running: Running) -> int:
    """Bytes of the process and all it started; pages that several share count once."""
    running.look()
    total = 0
    for process in running.left():
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Quickstart:
    folder = tmp_path_factory.mktemp("quickstart")
    peak, began = 0, time.monotonic()
    with Running(folder / "desk", "sweep", FILE, "--storage", folder / "storage", "--json") as running:
        while running.process.poll() is None:
            peak = max(peak, memory(running))
            assert time.monotonic() - began < 700, running.text()
            time.sleep(1)
        ran = running.ended()
        seconds = time.monotonic() - began
        running.gone(20)
    print(f"quickstart: {seconds:.0f} s, peak {peak / 2**30:.2f} GiB")  # noqa: T201 - shown by pytest -s and on failure
    assert ran.code == 0, ran.err
    return Quickstart(folder / "storage", ran, seconds, peak)


def value(trial: dict[str, Any], nfe: int, *, searched: bool = False) -> float:
    (found,) = [
        e["value"]
        for e in trial["evaluations"]
        if e["provenance"]["nfe"] == nfe and e["provenance"]["searched"] is searched
    ]
    return found


def named(quickstart: Quickstart, *parts: str) -> dict[str, Any]:
    (trial,) = [t for t in quickstart.trials if all(p in t["label"] for p in parts)]
    return trial


def test_it_ends_in_four_minutes_on_two_cores(quickstart):
    assert quickstart.seconds < 240


def test_it_takes_less_than_four_gibibytes(quickstart):
    assert quickstart.peak < 4 * 2**30


def test_everything_is_trained_and_measured(quickstart):
    assert {t["status"] for t in quickstart.trials} == {"finished"}
    assert quickstart.first.json["trained"] == len(quickstart.trials)
    for name in ("table.csv", "curve.png", "samples.png"):
        assert Path(quickstart.first.json["files"][name]).is_file()


def test_the_best_distilled_model_is_ten_times_nearer_in_one_step_than_its_teacher(quickstart):
    (teacher,) = [t for t in quickstart.trials if t["role"] == "teacher"]
    best = min(value(t, 1) for t in quickstart.trials if t["label"].startswith("cd"))
    assert best <= value(teacher, 1) / 10


def test_two_searched_steps_beat_one(quickstart):
    (searched,) = [t for t in quickstart.trials if t["searches"]]
    assert value(searched, 1) == min(value(t, 1) for t in quickstart.trials if t["role"] == "trial")
    assert value(searched, 2, searched=True) < value(searched, 1)


def test_the_adaptive_schedule_beats_the_fixed_one(quickstart):
    assert value(named(quickstart, "ct", "N(k)"), 1) < value(named(quickstart, "ct", "N=18"), 1)


def test_a_second_run_trains_nothing_and_shows_the_same(quickstart):
    table, began = quickstart.table, time.monotonic()
    with Running(
        quickstart.storage.parent / "desk", "sweep", FILE, "--storage", quickstart.storage, "--json"
    ) as running:
        ran = running.ended()
    assert time.monotonic() - began < 30
    assert ran.code == 0, ran.err
    assert (ran.json["trained"], ran.json["measured"], ran.json["failed"]) == (0, 0, 0)
    assert quickstart.table == table
    assert ran.json["trials"] == quickstart.trials
