"""The curve that is drawn beside the training: its numbers are those of measuring at once, come what may."""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from small_run import CPU, checkpoint, digits, go, small
from train_worker import StopsAt

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.config.run import CurveConfig, RunConfig
from cmray.core.errors import DataError
from cmray.core.rng import SEED_BASE
from cmray.datasets import ImageDataset
from cmray.engine.checkpoint import checkpoints
from cmray.engine.measure import block_statistics, seed_blocks
from cmray.engine.model import load_model, sample_seeds
from cmray.engine.session import PlainSession
from cmray.metrics.extractors import ExtractorConfig, extractors
from cmray.metrics.extractors.digits import DigitsExtractor
from cmray.metrics.frechet import frechet_distance
from cmray.metrics.reference import reference_statistics
from cmray.metrics.statistics import merged
from cmray.report.load import _events as loaded_events
from cmray.tracking.events import EventLog, EventTail, read_events

#: few images, as each start of a run describes them all
FEW = ImageDataset("digits", "few", "t", digits().images[:60], digits().labels[:60], digits().classes)
SECONDS = 30  # after which a test gives up


class HeldExtractor(DigitsExtractor):
    """The digits' extractor, which does something first when the curve's thread asks it."""

    name: ClassVar[str] = "held"
    first: ClassVar[Callable[[], object]]

    def describe(self, images, wanted):
        if in_background():
            type(self).first()
        return super().describe(images, wanted)


class HeldConfig(ExtractorConfig):
    def build(self, device):
        return HeldExtractor(device)


def in_background() -> bool:
    return threading.current_thread().name.startswith("cmray-curve")


@pytest.fixture
def held():
    """Registered for one test: others walk over every extractor there is."""
    extractors.register("held")(HeldConfig)
    HeldExtractor.first = staticmethod(lambda: None)
    yield HeldExtractor
    del extractors._classes["held"]


class Counting(PlainSession):
    """Counts the steps, and keeps what is reported and in which thread."""

    def __init__(self):
        super().__init__(CPU)
        self.steps = 0
        self.heard: list[tuple[int, dict[str, float]]] = []
        self.threads: set[threading.Thread] = set()

    def should_stop(self) -> bool:
        self.steps += 1
        return False

    def report(self, step, metrics):
        self.heard.append((step, dict(metrics)))
        self.threads.add(threading.current_thread())


def until_step(session: Counting, steps: int) -> None:
    deadline = time.monotonic() + SECONDS
    while session.steps < steps:
        assert time.monotonic() < deadline, "the trainer waits for the point that waits for it"
        time.sleep(0.001)


class Ended(BaseException):
    """The process is gone: what comes after this, a killed one does not do either."""


class EndsAt(Counting):
    """Ends before the n-th question whether to stop (after a step's point is begun, before its checkpoint), or within
    the n-th report (after its event is written)."""

    def __init__(self, step: int | None = None, report: int | None = None, tell: threading.Event | None = None):
        super().__init__()
        self.at_step, self.at_report, self.tell = step, report, tell or threading.Event()

    def should_stop(self) -> bool:
        super().should_stop()
        if self.steps == self.at_step:
            self.tell.set()
            raise Ended
        return False

    def report(self, step, metrics):
        super().report(step, metrics)
        if len(self.heard) == self.at_report:
            raise Ended


def curve_of(folder: Path) -> list[tuple[int, int, dict[str, float]]]:
    return [(e.step, e.nimg, e.metrics) for e in read_events(folder / "events.jsonl") if e.kind == "curve"]


def events_of(folder: Path) -> list:
    """Everything that is logged and does not tell the time, by step."""
    kept = [
        (e.step, e.kind, e.nimg, {k: v for k, v in e.metrics.items() if k not in ("images_per_second", "data_wait")})
        for e in read_events(folder / "events.jsonl")
    ]
    return sorted(kept, key=lambda e: e[:2])


def left_by(folder: Path) -> dict:
    facts = read_checkpoint_facts(checkpoint(folder))
    return {"step": facts.step, "nimg": facts.nimg, **facts.files}


def measured_at_once(path: Path, run: RunConfig, data: ImageDataset) -> dict[str, float]:
    """A point of the curve from a checkpoint, in this thread and by other code than the curve's."""
    model = load_model(path, CPU)
    extractor = extractors.parse("digits").build(CPU)
    reference = reference_statistics(extractor, data.images)
    out = {}
    for nfe in run.curve.nfe:
        ask = partial(
            sample_seeds,
            model.denoise,
            model.sampler(nfe),
            shape=model.shape,
            num_classes=model.num_classes,
            device=CPU,
        )
        blocks = seed_blocks(SEED_BASE["curve"], run.curve.num_samples, 256)
        statistics = merged([block_statistics(ask, extractor, seeds) for seeds in blocks])
        out[f"{run.curve.metric}@{nfe}"] = frechet_distance(statistics, reference)
    return out


def background_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("cmray-curve")]


# ---------------------------------------------------------------- what is measured, and when


@pytest.mark.parametrize("conditional", [False, True])
def test_points_have_the_bits_of_measuring_their_checkpoints_at_once(tmp_path, conditional):
    run = small(
        {
            "train.steps": 9,
            "train.checkpoint_every": 2,
            "train.keep_checkpoints": 9,
            "train.ema": [0.9, 0.5],
            "net.class_conditional": conditional,
        },
        curve={"every": 2, "num_samples": 300, "nfe": [1, 2]},
    )
    assert go(run, tmp_path, data=FEW, session=StopsAt(PlainSession(CPU), 0, 8)).status == "stopped"
    expected = {facts.step: measured_at_once(path, run, FEW) for facts, path in checkpoints(tmp_path / "checkpoints")}
    assert sorted(expected) == [2, 4, 6, 8]
    assert {step: metrics for step, _, metrics in curve_of(tmp_path)} == expected
    assert [(step, nimg) for step, nimg, _ in curve_of(tmp_path)] == [(s, 8 * s) for s in (2, 4, 6, 8)]


def test_training_goes_on_while_a_point_is_measured(tmp_path, held):
    session = Counting()

    held.first = staticmethod(partial(until_step, session, 7))
    changes = {"train.steps": 8, "train.log_every": 1, "train.checkpoint_every": 8}
    run = small(changes, curve={"every": 4, "num_samples": 16, "metric": "fd/held"})
    go(run, tmp_path / "held", data=FEW, session=session)
    log = read_events(tmp_path / "held" / "events.jsonl")
    assert [(e.kind, e.step) for e in log] == [
        *(("train", step) for step in range(1, 9)),
        ("curve", 4),
        ("curve", 8),
    ]
    go(run, tmp_path / "free", data=FEW)
    assert events_of(tmp_path / "held") == events_of(tmp_path / "free")
    assert left_by(tmp_path / "held") == left_by(tmp_path / "free")


def test_points_come_one_at_a_time_in_order_and_none_is_left_out(tmp_path, held):
    busy, most, lock = 0, 0, threading.Lock()

    def slow() -> None:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        with lock:
            busy -= 1

    held.first = staticmethod(slow)
    session = Counting()
    run = small({"train.steps": 7}, curve={"every": 1, "num_samples": 8, "nfe": [1, 2], "metric": "fd/held"})
    go(run, tmp_path, data=FEW, session=session)
    assert [step for step, _, _ in curve_of(tmp_path)] == list(range(1, 8))
    assert most == 1
    assert session.heard == [(step, metrics) for step, _, metrics in curve_of(tmp_path)]
    assert session.threads == {threading.current_thread()}, "a scheduler hears of them in the trainer's thread"


def test_a_point_is_reported_soon_after_it_is_there(tmp_path, held):
    there = threading.Event()
    held.first = staticmethod(there.set)

    class Slow(Counting):
        def should_stop(self) -> bool:
            super().should_stop()
            if self.steps in (3, 4):
                assert there.wait(SECONDS)
                time.sleep(0.2)  # what is left to do after the extractor takes a millisecond
            return False

        def report(self, step, metrics):
            super().report(step, {"during": self.steps + 1})

    session = Slow()
    changes = {"train.steps": 9, "train.checkpoint_every": 9}
    go(
        small(changes, curve={"every": 3, "num_samples": 8, "metric": "fd/held"}),
        tmp_path,
        data=FEW,
        session=session,
    )
    step, said = session.heard[0]
    assert step == 3
    assert said["during"] in (4, 5), "not only when the next one is due, in step 6"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_has_the_same_bits_with_and_without_a_curve(tmp_path, precision):
    """With dropout, whose masks come from torch's global generator, and with autocast, whose cache is shared."""
    net = {"name": "ddpmpp", "channels": 16, "multipliers": [1], "blocks": 1, "dropout": 0.2}
    changes = {"net": net, "train.precision": precision, "train.steps": 8, "train.checkpoint_every": 8}
    go(small(changes), tmp_path / "without", data=FEW)
    go(small(changes, curve={"every": 2, "num_samples": 64, "nfe": [1, 2]}), tmp_path / "with", data=FEW)
    assert left_by(tmp_path / "without") == left_by(tmp_path / "with")
    assert len(curve_of(tmp_path / "with")) == 4


@pytest.mark.parametrize("threads", [1, 2])
def test_the_thread_measures_with_the_trainers_number_of_threads_and_without_gradients(tmp_path, held, threads):
    seen = set()
    held.first = staticmethod(lambda: seen.add((torch.get_num_threads(), torch.is_grad_enabled())))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        go(small(curve={"every": 3, "num_samples": 8, "metric": "fd/held"}), tmp_path, data=FEW)
    finally:
        torch.set_num_threads(before)
    assert seen == {(threads, False)}


# ---------------------------------------------------------------- ends


def same_in_the_end(parts: Path, whole: Path) -> None:
    assert events_of(parts) == events_of(whole)
    assert left_by(parts) == left_by(whole)
    assert (parts / "result.json").is_file()


ENDS = [*({"step": n} for n in (1, 3, 4, 5, 6, 7)), *({"report": n} for n in (1, 2, 3))]


@pytest.mark.parametrize(("every", "save"), [(2, 3), (3, 3), (3, 2)])
def test_a_run_that_ends_anywhere_goes_on_to_the_same_events_and_weights(tmp_path, every, save):
    changes = {"train.steps": 7, "train.log_every": 1, "train.checkpoint_every": save}
    run = small(changes, curve={"every": every, "num_samples": 16, "nfe": [1, 2]})
    whole = tmp_path / "whole"
    go(run, whole, data=FEW)
    for end in ENDS:
        parts = tmp_path / "-".join(f"{k}{v}" for k, v in end.items())
        with pytest.raises(Ended):
            go(run, parts, data=FEW, session=EndsAt(**end))
        assert not (parts / "result.json").exists()
        assert background_threads() == []
        go(run, parts, data=FEW, warn=pytest.fail)
        same_in_the_end(parts, whole)
    often = tmp_path / "often"
    for _ in range(20):
        try:
            go(run, often, data=FEW, session=EndsAt(step=save + 1))
            break
        except Ended:
            continue
    same_in_the_end(often, whole)


def test_the_point_of_a_checkpoint_that_was_not_there_yet_is_measured_from_it(tmp_path, held):
    ended = threading.Event()
    held.first = staticmethod(partial(ended.wait, SECONDS))
    changes = {"train.steps": 8, "train.checkpoint_every": 3, "train.log_every": 1}
    run = small(changes, curve={"every": 3, "num_samples": 16, "metric": "fd/held"})
    with pytest.raises(Ended):
        go(run, tmp_path / "parts", data=FEW, session=EndsAt(step=5, tell=ended))
    assert read_checkpoint_facts(checkpoint(tmp_path / "parts")).step == 3
    assert curve_of(tmp_path / "parts") == [], "it ended before the point was there"
    again = Counting()
    go(run, tmp_path / "parts", data=FEW, session=again)
    go(run, tmp_path / "whole", data=FEW)
    same_in_the_end(tmp_path / "parts", tmp_path / "whole")
    assert [step for step, _ in again.heard] == [3, 6, 8]


def test_a_checkpoint_leaves_no_point_of_an_earlier_step_behind(tmp_path, held):
    """Saved at 3 while the point of step 2 is slow: with the checkpoint there, the point is in the log."""
    held.first = staticmethod(lambda: time.sleep(0.1))
    changes = {"train.steps": 8, "train.checkpoint_every": 3}
    run = small(changes, curve={"every": 2, "num_samples": 8, "metric": "fd/held"})
    with pytest.raises(Ended):
        go(run, tmp_path, data=FEW, session=EndsAt(step=4))
    assert read_checkpoint_facts(checkpoint(tmp_path)).step == 3
    assert [step for step, _, _ in curve_of(tmp_path)] == [2]


def test_a_run_that_was_whole_but_for_its_last_point_draws_it(tmp_path):
    run = small({"train.steps": 4}, curve={"every": 4, "num_samples": 16})
    go(run, tmp_path / "whole", data=FEW)
    with pytest.raises(Ended):
        go(run, tmp_path / "parts", data=FEW, session=EndsAt(report=1))
    log = EventLog(tmp_path / "parts" / "events.jsonl")
    log.truncate_after(3)
    assert curve_of(tmp_path / "parts") == []
    outcome = go(run, tmp_path / "parts", data=FEW)
    assert (outcome.status, outcome.step) == ("finished", 4)
    assert curve_of(tmp_path / "parts") == curve_of(tmp_path / "whole")


def test_a_run_that_is_asked_to_stop_waits_for_the_point_it_has_begun(tmp_path, held):
    held.first = staticmethod(lambda: time.sleep(0.1))
    run = small({"train.steps": 8}, curve={"every": 3, "num_samples": 8, "metric": "fd/held"})
    assert go(run, tmp_path, data=FEW, session=StopsAt(PlainSession(CPU), 0, 3)).status == "stopped"
    assert [step for step, _, _ in curve_of(tmp_path)] == [3]
    assert background_threads() == []


def test_the_end_waits_for_the_last_point_and_its_time_counts(tmp_path, held):
    held.first = staticmethod(lambda: time.sleep(0.3))
    run = small({"train.steps": 2}, curve={"every": 2, "num_samples": 8, "metric": "fd/held"})
    outcome = go(run, tmp_path, data=FEW)
    assert [step for step, _, _ in curve_of(tmp_path)] == [2]
    assert outcome.result.seconds >= 0.3
    assert background_threads() == []


# ---------------------------------------------------------------- errors


#: the first update makes weights of which samples are infinite, from a loss that still is finite
EXPLODES = {"train.optimizer": {"name": "adam", "lr": 3e38}, "train.ema": [0.0], "train.steps": 12}


@pytest.mark.parametrize("log_every", [1, 12])
def test_samples_that_are_not_finite_fail_the_run_in_one_line(tmp_path, log_every):
    """Also where the loss of the next step tells first."""
    run = small({**EXPLODES, "train.log_every": log_every}, curve={"every": 1, "num_samples": 8})
    with pytest.raises(DataError, match=r"^\d+ of 8 samples hold NaN or infinite values .*diverged$"):
        go(run, tmp_path, data=FEW)
    assert not (tmp_path / "result.json").exists()
    assert background_threads() == []


def test_an_error_in_the_thread_ends_the_training_soon(tmp_path, held):
    def fails() -> None:
        raise DataError("the extractor is broken")

    held.first = staticmethod(fails)
    session = Counting()
    changes = {"train.steps": 4_000, "train.checkpoint_every": 4_000, "train.log_every": 4_000}
    run = small(changes, curve={"every": 5, "num_samples": 8, "metric": "fd/held"})
    with pytest.raises(DataError, match=r"^the extractor is broken$"):
        go(run, tmp_path, data=FEW, session=session)
    assert 5 <= session.steps <= 10
    assert curve_of(tmp_path) == []


def test_training_that_fails_gives_the_thread_up(tmp_path, held):
    """A point of many blocks is not measured to its end."""
    blocks = []

    def slow() -> None:
        blocks.append(1)
        time.sleep(0.05)

    held.first = staticmethod(slow)
    run = small({"train.steps": 50}, curve={"every": 2, "num_samples": 256 * 40, "metric": "fd/held"})
    with pytest.raises(Ended):
        go(run, tmp_path, data=FEW, session=EndsAt(step=3))
    assert len(blocks) < 10
    assert background_threads() == []


# ---------------------------------------------------------------- readers of a log whose points come late


def test_who_reads_the_log_copes_with_points_that_come_late(tmp_path, held):
    session = Counting()
    held.first = staticmethod(partial(until_step, session, 7))
    changes = {"train.steps": 8, "train.log_every": 1, "train.checkpoint_every": 8}
    path = tmp_path / "events.jsonl"
    run = small(changes, curve={"every": 4, "num_samples": 8, "metric": "fd/held"})
    go(run, tmp_path, data=FEW, session=session)
    order = [(e.kind, e.step) for e in read_events(path)]
    assert order.index(("curve", 4)) > order.index(("train", 7)), "it came late"
    assert [(e.step, e.kind) for e in loaded_events(path) if e.step > 3][:3] == [
        (4, "train"),
        (4, "curve"),
        (5, "train"),
    ]
    tail = EventTail(path)
    assert [(e.kind, e.step) for e in tail.new()] == order
    EventLog(path).truncate_after(5)
    kept = [(kind, step) for kind, step in order if step <= 5]
    assert [(e.kind, e.step) for e in read_events(path)] == kept
    assert ("curve", 4) in kept
    assert tail.new() == []


@pytest.mark.parametrize(
    ("every", "steps", "expected"), [(3, 9, [3, 6, 9]), (3, 8, [3, 6, 8]), (9, 9, [9]), (1, 2, [1, 2])]
)
def test_points_are_due_at_every_interval_and_at_the_end(every, steps, expected):
    curve = CurveConfig(every=every)
    assert [step for step in range(1, steps + 1) if curve.due(step, steps)] == expected
