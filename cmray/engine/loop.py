"""The training loop. It reads a run, a dataset and a session, and leaves checkpoints, events and a result."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml

from cmray.config.needed_plugins import plugins_of
from cmray.config.run import RunConfig
from cmray.core.errors import CmrayError
from cmray.core.files import write_atomic
from cmray.core.rng import torch_generator
from cmray.engine.batches import Batches, TrainingData, open_batches, resume_notes
from cmray.engine.checkpoint import checkpoints, newest_checkpoint, save_checkpoint
from cmray.engine.curve import Curve, CurvePoints
from cmray.engine.result import RESULT, write_result
from cmray.engine.session import Session, from_rank0, gather, reduce_sum
from cmray.engine.shares import note_workers, own_parts, own_shares
from cmray.engine.spent import ATTEMPTS, CostMeter, note_attempt, repeated_seconds, with_repeated
from cmray.engine.state import TrainState
from cmray.engine.versions import git_revision, versions
from cmray.objectives import Loss
from cmray.tracking.events import EventLog, read_events
from cmray.tracking.records import Event, Result

#: ranks ask each other whether to stop at log points, and at the latest after so many steps, or as many as take so many
#: seconds: a node that is taken away gives half a minute's notice
AGREE_EVERY, AGREE_SECONDS = 20, 2.0


class TrainingError(CmrayError):
    """Training went wrong in a way the user's settings decide, such as a loss that is not finite."""


@dataclass(frozen=True)
class TrainOutcome:
    status: Literal["finished", "stopped"]
    result: Result | None
    step: int


def train(
    run: RunConfig,
    data: TrainingData,
    folder: Path,
    teacher: Path | None,
    session: Session,
    warn: Callable[[str], None] = lambda _: None,
) -> TrainOutcome:
    """Trains one run from its newest whole checkpoint, or from the start.

    Args:
        folder: the trial's folder; checkpoints/, events.jsonl and result.json are kept in it.
        teacher: checkpoint folder of the teacher, when the objective needs one.
        warn: told of every checkpoint that was skipped as damaged.

    Raises:
        TrainingError: the loss is not finite.
        CheckpointError: the teacher cannot be read.
        ValueError: the session has another number of processes than the run allows.
    """
    resources = run.resources
    if not resources.least_workers <= session.world_size <= resources.workers:
        least = "" if resources.min_workers is None else f" and min_workers {resources.min_workers}"
        raise ValueError(
            f"{session.world_size} processes train a run whose resources.workers is {resources.workers}{least}"
        )
    saved = folder / "checkpoints"
    found = None
    if session.rank == 0:
        write_config(folder, run)
        found = newest_checkpoint(saved, warn)
    found = from_rank0(found, session)
    if found is not None:
        found = found[0], saved / found[1].name  # type: ignore[index]  # the same checkpoint in this machine's folder
    if run.train.compile:
        torch.compiler.reset()  # a process that trained others before would run into torch's limit of compilations
    state = TrainState(run, data.shape, len(data.classes), teacher, session)
    if found is not None:
        state.load(*found)  # type: ignore[misc]
    log = EventLog(folder / "events.jsonl")
    if session.rank == 0:
        if state.step < run.train.steps:
            note_attempt(folder, state.step)
        log.truncate_after(state.step)
        note_workers(run, session, state.step, log, warn)
    points = _points(state, data, log) if session.rank == 0 else None
    with closing(open_batches(run, data, session)) as batches, closing(points) if points else nullcontext():
        if found is not None and session.rank == 0:
            for note in resume_notes(batches, state.step, found[0].run.resources.workers):  # type: ignore[index]
                warn(note)
        if found is not None and points is not None:
            _resume_point(points, state, log)
        loop = _Loop(run, state, batches, session, log)
        try:
            finished = _steps(loop, points, saved)
        except TrainingError:
            if points is not None:
                points.wait()  # of an earlier step: its number, or its error, comes first
            raise
    if not finished:
        return TrainOutcome("stopped", None, state.step)
    result = None
    if session.rank == 0:
        result = _finish(folder, state, session)
    return TrainOutcome("finished", result, state.step)


def _points(state: TrainState, data: TrainingData, log: EventLog) -> CurvePoints | None:
    """The curve of a run that draws one."""

    def add(event: Event) -> None:
        log.append(event)
        state.session.report(event.step, event.metrics)

    return CurvePoints(Curve(state, data), add) if state.run.curve is not None else None


def _resume_point(points: CurvePoints, state: TrainState, log: EventLog) -> None:
    """Measures the checkpoint that a run goes on from, where the process ended before it had done so.

    Points of earlier steps are there: no checkpoint is written before them.
    """
    curve, train = state.run.curve, state.run.train
    assert curve is not None
    there = {event.step for event in read_events(log.path) if event.kind == "curve"}
    if curve.due(state.step, train.steps) and state.step not in there:
        points.start(state)
        if train.compile:
            points.wait()  # the first step compiles, for which torch changes nn.Module itself


def _steps(loop: _Loop, points: CurvePoints | None, saved: Path) -> bool:
    """Takes the steps that are left, with curve points and checkpoints between them. False when asked to stop."""
    run, state, session = loop.run, loop.state, loop.session
    stop = False
    while state.step < run.train.steps and not stop:
        loop.one_step()
        at = state.step
        last = at == run.train.steps
        if points is not None:
            points.poll()
        if run.curve is not None and run.curve.due(at, run.train.steps):
            loop.check_finite(float(reduce_sum(loop.loss_sum.clone(), session)))  # on all ranks: they fail together
            if points is not None:
                points.start(state)
        stop = loop.agreed_stop()
        if last or stop or at % run.train.checkpoint_interval == 0:
            if points is not None:
                points.wait(before=at)  # a run that goes on from here measures this step again, but none before it
            loop.meter.settle()
            if session.rank == 0:
                save_checkpoint(saved, state.parts(), state.facts(), run.train.keep_checkpoints)
    loop.meter.settle()  # all ranks; none waits for rank 0 after it
    if points is not None:
        points.wait()
        if session.world_size == 1:
            loop.meter.settle()
    return state.step == run.train.steps


class _Loop:
    """One step, its clock and its log."""

    def __init__(self, run: RunConfig, state: TrainState, batches: Batches, session: Session, log: EventLog):
        self.run, self.state, self.batches, self.session, self.log = run, state, batches, session, log
        self._parts = run.resources.workers * run.train.accumulate
        self._mine = own_parts(run, session)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=session.device)  # of mean losses since the last log
        self._seen: list[Loss] = []
        self._since, self._waited = 0, 0.0
        self.meter = CostMeter(state.cost, session, run.resources.gpus_per_worker)
        self._logged_at = self._asked_at = time.monotonic()
        self._asked_step = self._asks_at = state.step

    def one_step(self) -> None:
        run, state, session = self.run, self.state, self.session
        state.student.params.grad.zero_()  # type: ignore[union-attr]
        for part in self._mine:  # whoever takes it, a part has the same images and the same noise
            asked = time.perf_counter()
            x0, label = self.batches.batch(state.step, part, self._parts)
            self._waited += time.perf_counter() - asked
            generator = torch_generator(session.device, "train", run.seed, state.step, part)
            state.exchange_on(part == self._mine[-1])
            state.begin(part)
            loss = state.objective.loss(state.roles, x0, state.labels(label), state.step, generator)
            mean = loss.mean() / self._parts
            mean.backward()
            self.loss_sum += mean.detach()
            self._seen.append(loss)
        self._learn_times()
        grad_norm = state.update()
        self._since += 1
        if state.step % run.train.log_interval == 0 or state.step == run.train.steps:
            self._log(grad_norm)

    def _learn_times(self) -> None:
        """Shows the losses of the whole batch, in the order of its parts, to a time sampler that learns from them."""
        times, seen, self._seen = self.state.objective.times, self._seen, []
        if not times.learns:
            return
        bins = torch.cat([loss.draw.bin for loss in seen])  # type: ignore[union-attr, arg-type]
        losses = torch.cat([loss.loss.detach() for loss in seen])
        shares, size = self.run.resources.workers, self.run.train.batch_size // self.run.resources.workers
        sizes = [size * len(own_shares(shares, r, self.session.world_size)) for r in range(self.session.world_size)]
        times.observe(gather(bins, self.session, sizes), gather(losses, self.session, sizes))

    def _log(self, grad_norm: torch.Tensor) -> None:
        state, session = self.state, self.session
        loss = float(reduce_sum(self.loss_sum, session)) / self._since
        norm = float(grad_norm)
        self.check_finite(loss, norm)
        now = time.monotonic()
        if session.rank == 0:
            images = self._since * self.run.train.batch_size
            metrics = {
                "loss": loss,
                "grad_norm": norm,
                "lr": state.lr_at(state.step - 1),
                "images_per_second": images / max(now - self._logged_at, 1e-9),
                "data_wait": self._waited / max(now - self._logged_at, 1e-9),  # fraction of the time
                **state.objective.schedule(state.step - 1),
            }
            event = Event(kind="train", step=state.step, nimg=state.nimg, time=time.time(), metrics=metrics)
            self.log.append(event)
        self.loss_sum.zero_()
        self._since, self._waited, self._logged_at = 0, 0.0, now

    def check_finite(self, loss: float, norm: float = 0.0) -> None:
        """Raises TrainingError when training has left the finite numbers."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"the loss is {loss} and the gradient norm {norm} at step {self.state.step}; a lower "
                f"train.optimizer.lr or train.grad_clip may help"
            )

    def agreed_stop(self) -> bool:
        """Whether any rank was asked to stop. Ranks ask each other after the same steps, so that none waits in vain."""
        if self.session.world_size == 1:
            return self.session.should_stop()
        step = self.state.step
        if self._since and step < self._asks_at:
            return False
        now = time.monotonic()
        own = torch.tensor([float(self.session.should_stop()), now - self._asked_at], dtype=torch.float64)
        asked, seconds = reduce_sum(own.to(self.session.device), self.session).tolist()
        each = seconds / self.session.world_size / max(1, step - self._asked_step)  # of all ranks: they ask together
        self._asked_at, self._asked_step = now, step
        self._asks_at = step + min(AGREE_EVERY, max(1, int(AGREE_SECONDS / max(each, 1e-9))))
        return asked > 0


def _finish(folder: Path, state: TrainState, session: Session) -> Result:
    newest = newest_checkpoint(folder / "checkpoints", lambda _: None)
    assert newest is not None
    facts, path = newest
    repeated = repeated_seconds(folder)
    gpus = state.run.resources.gpus_per_worker * session.world_size if session.device.type == "cuda" else 0.0
    result = Result(
        steps=state.step,
        nimg=state.nimg,
        **asdict(with_repeated(state.cost, repeated, gpus)),
        repeated_seconds=repeated,
        checkpoint=path.name,
        weights_sha256=facts.weights_sha256,
        versions=versions(plugins_of(state.run)),
        git=git_revision(),
        world_size=session.world_size,
    )
    # a finished run is never resumed, so one checkpoint is enough
    for _, old in checkpoints(folder / "checkpoints")[1:]:
        shutil.rmtree(old, ignore_errors=True)
    (folder / "error.txt").unlink(missing_ok=True)
    write_result(folder, result)
    return result


def write_config(folder: Path, run: RunConfig) -> None:
    """The resolved run, where people and reports look for it."""
    write_atomic(folder / "config.yaml", yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))


def clear_trial(folder: Path) -> None:
    """Removes all that an earlier training left, so that the next one starts anew, and counts the attempts."""
    if not folder.is_dir():
        return
    attempt = folder / "attempt"
    write_atomic(attempt, str(1 + int(attempt.read_text() if attempt.is_file() else 1)))
    for name in ("checkpoints", "evaluations", "searches"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("events.jsonl", ATTEMPTS, RESULT, "error.txt"):
        (folder / name).unlink(missing_ok=True)
