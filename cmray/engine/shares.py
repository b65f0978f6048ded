"""Who takes what of a batch: as many shares as the run has workers, dealt to the processes that train."""

from __future__ import annotations

import time
from collections.abc import Callable

from cmray.config.run import RunConfig
from cmray.engine.session import Session
from cmray.tracking.events import EventLog, read_events
from cmray.tracking.records import Event


def own_shares(shares: int, rank: int, world_size: int) -> range:
    """Consecutive shares of a batch that process `rank` of `world_size` takes: as many as the others, or one more."""
    return range(shares * rank // world_size, shares * (rank + 1) // world_size)


def own_parts(run: RunConfig, session: Session) -> range:
    """Parts of each batch that this process takes, all shares' together being 0 to workers * accumulate - 1.

    Raises ValueError when there are more processes than shares.
    """
    shares = own_shares(run.resources.workers, session.rank, session.world_size)
    if not shares:
        raise ValueError(f"{session.world_size} processes cannot share batches of {run.resources.workers} shares")
    return range(shares.start * run.train.accumulate, shares.stop * run.train.accumulate)


def note_workers(run: RunConfig, session: Session, step: int, log: EventLog, warn: Callable[[str], None]) -> None:
    """Keeps how many processes train an elastic run from `step` on, where that is news. On rank 0."""
    if run.resources.min_workers is None:
        return
    now = session.world_size
    before = [int(event.metrics["workers"]) for event in read_events(log.path) if event.kind == "workers"]
    if before[-1:] == [now]:
        return
    nimg = step * run.train.batch_size
    log.append(Event(kind="workers", step=step, nimg=nimg, time=time.time(), metrics={"workers": now}))
    if before:
        warn(f"goes on at step {step:,} with {now} worker{'s' * (now > 1)} instead of {before[-1]}")
