"""Batches are cut into shares: whoever takes them, and however many take part, the run computes the same."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_run import CPU, checkpoint, digits, go, small, teacher_checkpoint

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.config.identity import content_hash, identity
from cmray.config.run import ResourcesConfig
from cmray.datasets.location import Location
from cmray.datasets.whole import write_shards
from cmray.engine.batches import open_batches
from cmray.engine.session import PlainSession
from cmray.engine.shares import own_parts, own_shares
from cmray.engine.stream import StreamedDataset
from cmray.tracking.events import read_events

FOUR = {"train.batch_size": 16, "resources.workers": 4, "resources.min_workers": 1}


@given(st.integers(1, 64), st.data())
def test_every_share_is_taken_once_and_nobody_takes_two_more_than_another(shares, data):
    workers = data.draw(st.integers(1, shares))
    taken = [own_shares(shares, rank, workers) for rank in range(workers)]
    assert [s for each in taken for s in each] == list(range(shares))
    assert {len(each) for each in taken} <= {shares // workers, -(-shares // workers)}


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 80))
def test_no_worker_is_kept_that_makes_nothing_faster(workers, least, room):
    least = min(least, workers)
    need = ResourcesConfig(workers=workers, min_workers=least)
    chosen = need.useful_workers(room)
    if room < least:
        assert chosen is None
        return

    def longest(count: int) -> int:
        return max(len(own_shares(workers, rank, count)) for rank in range(count))

    assert chosen is not None
    assert least <= chosen <= min(room, workers)
    assert longest(chosen) == longest(min(room, workers)), "slower than it could be"
    assert chosen == least or longest(chosen - 1) > longest(chosen), "one of them is for nothing"
    assert ResourcesConfig(workers=workers).useful_workers(room) == (workers if room >= workers else None)


def test_fewer_workers_than_the_least_or_more_than_all_are_refused(tmp_path):
    run = small({**FOUR, "resources.min_workers": 2})
    with pytest.raises(ValueError, match=r"1 processes train a run whose resources.workers is 4 and min_workers 2"):
        go(run, tmp_path)
    with pytest.raises(ValueError, match="5 processes cannot share batches of 4 shares"):
        own_parts(run, PlainSession(CPU, 0, 5))
    with pytest.raises(ValidationError, match="min_workers 5 exceeds workers 4"):
        small({**FOUR, "resources.min_workers": 5})


def test_a_trial_has_the_same_name_whether_it_is_elastic_or_not():
    elastic, fixed, other = small(FOUR), small({**FOUR, "resources.min_workers": None}), small({"train.batch_size": 16})
    assert content_hash(identity(elastic)) == content_hash(identity(fixed)) != content_hash(identity(other))


SONG = {"name": "ddpmpp", "channels": 8, "multipliers": [1], "blocks": 1, "attention_resolutions": [], "dropout": 0.3}
CASES = {
    "ct": {},
    "flips, noise and dropout": {"net": SONG, "data.flip": True, "data.dequantize": True, "train.steps": 3},
    "learned times": {
        "objective": {"name": "ct", "num_sigmas": 3, "times": {"name": "loss-second-moment", "history": 2}}
    },
    "cd": {"objective": {"name": "cd", "num_sigmas": 9}},
}


@pytest.mark.parametrize("case", CASES)
def test_one_process_in_the_place_of_four_draws_what_they_draw(case, tmp_path):
    """The same parts in the same order: bit for bit the run that takes its batch in four parts."""
    teacher = teacher_checkpoint(tmp_path / "teacher", {"train.steps": 2}) if case == "cd" else None
    changes = CASES[case] | ({"teacher": {"checkpoint": str(teacher)}} if teacher else {})
    go(small({**changes, **FOUR}), tmp_path / "four", teacher)
    go(small({**changes, "train.batch_size": 16, "train.accumulate": 4}), tmp_path / "parts", teacher)
    four, parts = (read_checkpoint_facts(checkpoint(tmp_path / name)).files for name in ("four", "parts"))
    assert four == parts


@pytest.mark.parametrize("feed", ["resident", "stream"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_joined_batch_is_the_same_for_any_number_of_processes(feed, accumulate, tmp_path):
    data = digits()
    if feed == "stream":
        data = StreamedDataset(Location(tmp_path / "shards"), write_shards(data, tmp_path / "shards", 3))
    run = small({**FOUR, "train.accumulate": accumulate, "data.flip": True, "data.dequantize": True})
    if feed == "stream":
        run = small({**FOUR, "train.accumulate": accumulate, "data.flip": True, "data.shuffle_buffer": 50})

    def joined(workers: int) -> torch.Tensor:
        """Three steps, then one far away, of all processes; float32 [4 * 16, 1, 8, 8]."""
        parts = run.resources.workers * accumulate
        found: dict[tuple[int, int], torch.Tensor] = {}
        for rank in range(workers):
            session = PlainSession(CPU, rank, workers)
            batches = open_batches(run, data, session)
            for step in (0, 1, 2, 150):
                for part in own_parts(run, session):
                    found[step, part] = batches.batch(step, part, parts)[0]
            batches.close()
        assert len(found) == 4 * parts
        return torch.cat([found[key] for key in sorted(found)])

    whole = joined(1)
    for workers in (2, 3, 4):
        assert torch.equal(joined(workers), whole), f"{workers} processes see something else"


def test_a_change_of_workers_is_an_event_and_a_line_in_the_log(tmp_path):
    """As left by two workers at step 3; one goes on."""
    run = small({**FOUR, "train.steps": 6, "train.checkpoint_every": 3})
    go(small({**FOUR, "train.steps": 6, "train.checkpoint_every": 3}), tmp_path, session=_StopsAt3(CPU))
    events = tmp_path / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert (lines[0]["kind"], lines[0]["step"], lines[0]["metrics"]) == ("workers", 0, {"workers": 1})
    lines[0]["metrics"]["workers"] = 2
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said: list[str] = []
    go(run, tmp_path, warn=said.append)
    assert said == ["goes on at step 3 with 1 worker instead of 2"]
    told = [(e.step, e.metrics["workers"]) for e in read_events(events) if e.kind == "workers"]
    assert told == [(0, 2), (3, 1)]
    assert [e.step for e in read_events(events) if e.kind == "train"] == [1, 2, 3, 4, 5, 6]


class _StopsAt3(PlainSession):
    asked = 0

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked == 3
