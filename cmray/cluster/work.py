"""What one trial does, wherever Ray has put it: in a Tune actor, or as a DDP worker of Ray Train."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from cmray.cluster.at_hand import located, mapped_here, synced
from cmray.cluster.preemption import node_is_leaving
from cmray.cluster.spec import TrialSpec
from cmray.core.errors import CmrayError
from cmray.core.files import disk_full, write_atomic
from cmray.datasets.mapped import MappedDataset
from cmray.engine.batches import TrainingData
from cmray.engine.loop import TrainOutcome, train
from cmray.engine.session import Session, prepare_process
from cmray.engine.stop import STOP, StopFile

T = TypeVar("T")


class TrialFailedError(CmrayError):
    """A failure that another process met; `trace` is its traceback."""

    def __init__(self, reason: str, trace: str):
        super().__init__(reason)
        self.trace = trace


class TuneSession:
    """A one-worker trial inside a Tune actor."""

    def __init__(self, device: torch.device, folder: Path):
        self.rank, self.world_size, self.device = 0, 1, device
        self._stop = StopFile(folder)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        from ray import tune

        tune.report({**metrics, "step": step})

    def should_stop(self) -> bool:
        return self._stop.asked() or node_is_leaving()


class TrainSession:
    """One DDP worker under Ray Train.

    Args:
        room: where a stop file asks it to make room for more workers, see `cmray.cluster.train`.
    """

    def __init__(self, folder: Path, room: Path) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._stop, self._room = StopFile(folder), StopFile(room)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing: the driver follows the trial's events, and a report would be a barrier for all workers."""

    def should_stop(self) -> bool:
        return self._stop.asked() or self._room.asked() or node_is_leaving()

    @property
    def makes_room(self) -> bool:
        """Whether it was asked to leave so that more workers can go on."""
        return self._room.asked()


def moves(spec: TrialSpec, outcome: TrainOutcome, why: str = "its node is taken away") -> bool:
    """Whether a trial has left, with all its steps saved, only to go on elsewhere. Its log.txt says so."""
    if outcome.status != "stopped" or (Path(spec.folder) / STOP).exists():
        return False
    log_line(Path(spec.folder), f"{why}; it saved step {outcome.step:,} and goes on from there")
    return True


def run_trial(spec: TrialSpec, data: TrainingData | MappedDataset, session: Session) -> TrainOutcome:
    """Trains in this process. Warnings go to the trial's log.txt. Raises StorageError when the disk is full."""
    spec = located(spec)
    if isinstance(data, MappedDataset):
        data = mapped_here(spec, data).open()
    folder = Path(spec.folder)
    run = spec.config
    prepare_process(int(run.resources.cpus_per_worker))
    teacher = Path(spec.teacher) if spec.teacher else None

    def warn(text: str) -> None:
        log_line(folder, text)

    with synced(spec, session, warn):
        try:
            return train(run, data, folder, teacher, session, warn)
        except OSError as error:
            raise disk_full(folder, error) or error from None


def log_line(folder: Path, text: str) -> None:
    """A line in the trial's log.txt, which the driver shows as a warning."""
    with (folder / "log.txt").open("a") as file:
        file.write(f"{text} ({time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())})\n")


def attempted(spec: TrialSpec, once: Callable[[], T]) -> T | None:
    """`once`, and again after an error as often as resources.retries allows. None when all attempts failed.

    Every error is kept in errors/; the last one of a trial that has failed is its error.txt.
    """
    retries = spec.config.resources.retries
    for attempt in range(1, retries + 2):
        try:
            return once()
        except Exception as error:
            if attempt > retries:
                note_failure(spec, error, attempt)
                return None
            reason, file = keep_error(spec, error)
            log_line(Path(spec.folder), f"attempt {attempt} failed: {reason}; trying again, see errors/{file.name}")
    raise AssertionError("unreachable")


def note_failure(spec: TrialSpec, error: BaseException, attempts: int = 1) -> str:
    """Keeps the error and writes error.txt, the reason first and the traceback below; returns the reason.

    Raises StorageError when the disk is full.
    """
    reason, file = keep_error(spec, error)
    text = file.read_text()
    if attempts > 1:
        text = text.replace(reason, f"{reason} (attempt {attempts}; all of them in errors/)", 1)
    try:
        write_atomic(Path(spec.folder) / "error.txt", text)
    except OSError as full:
        raise disk_full(Path(spec.folder), full) or full from None
    return reason


def keep_error(spec: TrialSpec, error: BaseException) -> tuple[str, Path]:
    """Writes the next errors/N.txt; returns the reason in one line and the file. Raises StorageError: disk full."""
    try:
        return _keep_error(spec, error)
    except OSError as full:
        raise disk_full(Path(spec.folder), full) or full from None


def _keep_error(spec: TrialSpec, error: BaseException) -> tuple[str, Path]:
    reason = str(error).strip() or type(error).__name__
    reason = (
        reason.splitlines()[0] if isinstance(error, CmrayError) else f"{type(error).__name__}: {reason.splitlines()[0]}"
    )
    trace = error.trace if isinstance(error, TrialFailedError) else "".join(traceback.format_exception(error))
    folder = Path(spec.folder) / "errors"
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.stem) for p in folder.glob("*.txt") if p.stem.isdigit()), default=0)
    while True:  # workers of one trial may fail together
        try:
            descriptor = os.open(folder / f"{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            break
        except FileExistsError:
            number += 1
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{reason}\n\n{trace}")
    return reason, folder / f"{number}.txt"
