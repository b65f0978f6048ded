"""What the loop knows of the place where it runs, and the plain-process place (also under torchrun)."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist


class Session(Protocol):
    """One of `world_size` processes that train one run together."""

    rank: int
    world_size: int
    device: torch.device

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells a scheduler how the run does. Called on rank 0, rarely: at curve points and at the end."""

    def should_stop(self) -> bool:
        """Whether this process was asked to save and leave."""
        ...


class PlainSession:
    """This process alone, or one of torchrun's when RANK and WORLD_SIZE are set."""

    def __init__(self, device: torch.device, rank: int = 0, world_size: int = 1):
        self.device, self.rank, self.world_size = device, rank, world_size
        self._stop = False

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def should_stop(self) -> bool:
        return self._stop

    def _ask_to_stop(self, *_: object) -> None:
        self._stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts, SIGINT and SIGTERM ask the loop to save and stop. For the main thread, around training."""
        handlers = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in handlers.items():
                signal.signal(s, handler)


def default_device() -> torch.device:
    """This process's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


@contextmanager
def plain_session(device: torch.device | None = None) -> Iterator[PlainSession]:
    """Joins torchrun's process group where there is one."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = device or default_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    joined = world_size > 1 and not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    session = PlainSession(device, rank, world_size)
    try:
        yield session
    finally:
        if joined and dist.is_initialized():  # a process that fails leaves before
            dist.destroy_process_group()


def prepare_process(threads: int) -> None:
    """Sets this process up for training on `threads` CPU threads.

    glibc gives large blocks back to the kernel at every free and faults them in again at every allocation; raising its
    thresholds took a step of a small net from 17.8 to 11.1 ms on one core.
    """
    torch.set_num_threads(max(1, threads))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one CPU thread: sums over several come out with other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reduce_sum(values: torch.Tensor, session: Session) -> torch.Tensor:
    """The sum over all ranks, in place."""
    if session.world_size > 1:
        dist.all_reduce(values)
    return values


def gather(values: torch.Tensor, session: Session, sizes: Sequence[int]) -> torch.Tensor:
    """The values [sizes[rank]] of all ranks one after the other."""
    if session.world_size == 1:
        return values
    own = values.new_zeros(max(sizes))  # backends gather equal sizes only
    own[: len(values)] = values
    out = [torch.empty_like(own) for _ in sizes]
    dist.all_gather(out, own)
    return torch.cat([each[:size] for each, size in zip(out, sizes, strict=True)])


def from_rank0(value: object, session: Session) -> object:
    """Rank 0's `value` on every rank."""
    if session.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=session.device)
    return box[0]
