"""All parameters of a module in one vector, so that optimizer, EMA and gradient exchange are single operations."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class FlatModule:
    """A module whose parameters (and, if trained, gradients) are views of one float32 vector.

    Buffers that belong to the weights, such as random frequencies, are constants: they go into files with the
    parameters and are never trained or averaged.

    Attributes:
        module: the network; its parameters are views of `params`.
        params: nn.Parameter [P]; `params.grad` is the flat gradient, or None when not trained.
    """

    def __init__(self, module: nn.Module, *, trained: bool):
        self.module = module
        named = list(module.named_parameters())
        if any(p.dtype != torch.float32 for _, p in named):
            raise TypeError("parameters must be float32; lower precision is autocast's business")
        trainable = {name for name, _ in named}
        self._constants = {name: value for name, value in module.state_dict().items() if name not in trainable}
        self._layout = [(name, p.shape, p.numel()) for name, p in named]
        flat = torch.cat([p.detach().reshape(-1) for _, p in named])
        self.params = nn.Parameter(flat, requires_grad=trained)
        if trained:
            self.params.grad = torch.zeros_like(flat)
        for (_, p), view in zip(named, self._views(flat), strict=True):
            p.data = view
            p.requires_grad_(trained)
        if trained:
            assert self.params.grad is not None
            for (_, p), view in zip(named, self._views(self.params.grad), strict=True):
                p.grad = view

    def _views(self, flat: Tensor) -> list[Tensor]:
        sizes = [n for _, _, n in self._layout]
        return [v.view(shape) for v, (_, shape, _) in zip(flat.split(sizes), self._layout, strict=True)]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector [P] as named tensors that own their memory, with the constants, for files."""
        views = self._views(flat.detach())
        named = {name: v.cpu().clone() for (name, _, _), v in zip(self._layout, views, strict=True)}
        return named | {name: value.cpu().clone() for name, value in self._constants.items()}

    @torch.no_grad()
    def load(self, named: dict[str, Tensor], into: Tensor | None = None) -> None:
        """Copies named tensors into `into` [P] (default: the module's own parameters and constants).

        Raises:
            KeyError, ValueError: names or shapes differ from the module's.
        """
        known = {name for name, _, _ in self._layout} | set(self._constants)
        if set(named) != known:
            raise KeyError(f"parameter names differ: {sorted(set(named) ^ known)[:4]}")
        own = {name: (view, shape) for view, (name, shape, _) in zip(self._target(into), self._layout, strict=True)}
        if into is None:
            own |= {name: (value, value.shape) for name, value in self._constants.items()}
        for name, (view, shape) in own.items():
            if named[name].shape != shape:
                raise ValueError(f"{name} has shape {list(named[name].shape)}, the network needs {list(shape)}")
            view.copy_(named[name])

    def _target(self, into: Tensor | None) -> list[Tensor]:
        return self._views(self.params.detach() if into is None else into)

    @torch.no_grad()
    def copy_from(self, other: FlatModule, flat: Tensor | None = None) -> None:
        """Takes the weights `flat` [P] (default: its parameters) and the constants of a module of the same kind."""
        self.params.data.copy_(other.params.data if flat is None else flat)
        for name, value in self._constants.items():
            value.copy_(other._constants[name])


class GradientExchange:
    """Sums the flat gradient over ranks, bucket by bucket, while the backward pass still runs.

    Unlike a DistributedDataParallel wrapper it does not sit between the objective and the network, so a forward-mode
    derivative or several forwards per step cannot slip past it. Buckets are launched from the last parameters to the
    first, in the same order on every rank.

    Args:
        flat: the trained module.
        bucket_bytes: least size of a bucket; more of them overlap better, fewer cost less latency.
    """

    def __init__(self, flat: FlatModule, bucket_bytes: int = 25 * 2**20):
        assert flat.params.grad is not None
        self._grad = flat.params.grad
        self._buckets: list[tuple[int, int]] = []  # [start, end) in the flat vector, last parameters first
        self._sizes: list[int] = []  # parameters per bucket
        bucket_of: list[int] = []
        parameters = list(flat.module.parameters())
        end = start = self._grad.numel()
        count = 0
        for parameter in reversed(parameters):
            start -= parameter.numel()
            count += 1
            bucket_of.append(len(self._buckets))
            if (end - start) * 4 >= bucket_bytes or start == 0:
                self._buckets.append((start, end))
                self._sizes.append(count)
                end, count = start, 0
        self.active = False  # set for the last part of an accumulated batch
        self._reset()
        for parameter, bucket in zip(reversed(parameters), bucket_of, strict=True):
            parameter.register_post_accumulate_grad_hook(lambda _, b=bucket: self._ready(b))

    def _reset(self) -> None:
        self._missing = list(self._sizes)
        self._launched: list[dist.Work | None] = []

    def _ready(self, bucket: int) -> None:
        if not self.active:
            return
        self._missing[bucket] -= 1
        while len(self._launched) < len(self._buckets) and self._missing[len(self._launched)] == 0:
            self._launch()

    def _launch(self) -> None:
        start, end = self._buckets[len(self._launched)]
        self._launched.append(dist.all_reduce(self._grad[start:end], async_op=True))

    def finish(self) -> None:
        """Waits until the whole gradient is summed. Parameters that took no part are exchanged as they are."""
        while len(self._launched) < len(self._buckets):
            self._launch()
        for work in self._launched:
            if work is not None:
                work.wait()
        self._reset()
