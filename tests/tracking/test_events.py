"""The events file: whole lines, torn lines, and a reader that survives the file being rewritten."""

import math
from pathlib import Path

import pytest

from cmray.tracking.events import EventLog, EventTail, read_events
from cmray.tracking.records import Event


def train(step: int, time: float = 0.0) -> Event:
    return Event(kind="train", step=step, nimg=8 * step, time=time, metrics={"loss": 1.0 / (1 + step)})


def curve(step: int, nfe: int) -> Event:
    return Event(kind="curve", step=step, nimg=8 * step, time=1.0, metrics={f"fd/digits@{nfe}": 2.0})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trial" / "events.jsonl"


def steps(events: list[Event]) -> list[int]:
    return [event.step for event in events]


def test_events_read_back_as_written_with_nan_and_infinity(path):
    events = [train(1), curve(1, 2)]
    events.append(Event(kind="train", step=2, nimg=16, time=0.5, metrics={"loss": math.nan, "lr": math.inf}))
    for event in events:
        EventLog(path).append(event)
    back = read_events(path)
    assert back[:2] == events[:2]
    assert math.isnan(back[2].metrics["loss"])
    assert back[2].metrics["lr"] == math.inf


def test_no_file_is_no_events(path):
    assert read_events(path) == []
    assert EventTail(path).new() == []
    EventLog(path).truncate_after(3)
    assert not path.exists()


def test_a_torn_last_line_is_left_out_and_replaced_by_the_next(path):
    log = EventLog(path)
    log.append(train(1))
    with path.open("ab") as file:
        file.write(b'{"kind":"train","step":2,"nim')
    assert steps(read_events(path)) == [1]
    log.append(train(2))
    assert steps(read_events(path)) == [1, 2]


def test_a_damaged_line_inside_the_file_is_left_out_and_named(path, caplog):
    EventLog(path).append(train(1))
    with path.open("ab") as file:
        file.write(b"garbage\n")
    EventLog(path).append(train(2))
    assert steps(read_events(path)) == [1, 2]
    assert steps(EventTail(path).new()) == [1, 2]
    assert [r.message for r in caplog.records] == [f"{path}: b'garbage' is no event and is left out"] * 2


def test_truncate_after_drops_later_steps_and_a_torn_line(path):
    log = EventLog(path)
    for step in range(6):
        log.append(train(step))
    log.append(curve(3, 1))
    log.append(curve(4, 1))
    with path.open("ab") as file:
        file.write(b'{"kind"')
    log.truncate_after(3)
    assert steps(read_events(path)) == [0, 1, 2, 3, 3]
    assert path.read_bytes().endswith(b"}\n")
    assert [file.name for file in path.parent.iterdir()] == ["events.jsonl"]
    log.append(train(4))
    assert steps(read_events(path)) == [0, 1, 2, 3, 3, 4]


def test_tail_returns_each_event_once_and_waits_for_whole_lines(path):
    log, tail = EventLog(path), EventTail(path)
    log.append(train(1))
    assert steps(tail.new()) == [1]
    assert tail.new() == []
    line = b'{"kind":"train","step":2,"nimg":16,"time":0.0,"metrics":{}}\n'
    with path.open("ab") as file:
        file.write(line[:20])
    assert tail.new() == []
    with path.open("ab") as file:
        file.write(line[20:])
    assert steps(tail.new()) == [2]


def test_tail_keeps_curves_of_one_step_that_come_one_by_one(path):
    log, tail = EventLog(path), EventTail(path)
    log.append(curve(5, 1))
    assert len(tail.new()) == 1
    log.append(curve(5, 2))
    log.append(curve(4, 2))
    assert [list(event.metrics) for event in tail.new()] == [["fd/digits@2"], ["fd/digits@2"]]


@pytest.mark.parametrize("repeated", [1, 3, 30])
def test_tail_survives_a_rewrite_however_far_the_file_has_grown_again(path, repeated):
    log, tail = EventLog(path), EventTail(path)
    for step in range(10):
        log.append(train(step, time=1.0))
    assert steps(tail.new()) == list(range(10))
    for _ in range(2):  # twice, as the second file may get the first one's inode
        log.truncate_after(4)
        for step in range(5, 5 + repeated):
            log.append(train(step, time=2.0))
    assert steps(tail.new()) == list(range(10, 5 + repeated))
    log.append(train(100))
    assert steps(tail.new()) == [100]


def test_tail_survives_a_file_that_is_deleted_and_begun_anew(path):
    log, tail = EventLog(path), EventTail(path)
    log.append(train(1))
    log.append(train(2))
    tail.new()
    path.unlink()
    assert tail.new() == []
    log.append(train(1, time=9.0))
    assert tail.new() == []
    log.append(train(3))
    assert steps(tail.new()) == [3]
