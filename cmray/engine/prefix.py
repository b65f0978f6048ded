"""Samples of the times that a search holds fixed, made once and gone on from.

A multistep schedule evaluates the network once a time, so samples of its first k - 1 times are all that the k-th needs
to know of them. A sampler walks the whole schedule all the same, asking `Recalling` in the place of the network: its
noise is drawn as ever, the answers to all times but the last are recalled, and the bits are those of a whole sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmray.core.precond import Denoise
from cmray.engine.model import Model
from cmray.engine.parts import read_arrays, write_arrays
from cmray.samplers import Sampler


@dataclass(frozen=True)
class Recalling(Model):
    """A model that counts what its network evaluates, and whose samples may go on from kept ones.

    Args:
        first_seed: of `prefix`.
        prefix: float32 [N,C,H,W], samples of the seeds from first_seed at all times but the last; None samples whole.
    """

    first_seed: int = 0
    prefix: Tensor | None = None
    _count: list[int] = field(default_factory=lambda: [0])

    @classmethod
    def of(cls, model: Model, first_seed: int, prefix: Tensor | None) -> Recalling:
        parts = {f.name: getattr(model, f.name) for f in dataclasses.fields(Model)}
        return cls(**parts, first_seed=first_seed, prefix=prefix)

    @property
    def spent(self) -> int:
        """Images that the network evaluated so far, those included that fill up a block."""
        return self._count[0]

    def images(self, sampler: Sampler, seeds: Sequence[int], labels: Tensor | None = None, block: int = 64) -> Tensor:
        """As `Model.images`, to the bit."""
        out = []
        for start in range(0, len(seeds), block):
            chunk = list(seeds[start : start + block])
            recalled = _Recalled(self.denoise, self._count, sampler.nfe - 1, self._kept(chunk, block))
            given = None if labels is None else labels[start : start + block]
            out.append(Model.images(dataclasses.replace(self, denoise=recalled), sampler, chunk, given, block))
        return torch.cat(out)

    def _kept(self, seeds: Sequence[int], block: int) -> Tensor | None:
        """The kept samples of one block, filled up as `Model.images` fills it."""
        if self.prefix is None:
            return None
        rows = [seed - self.first_seed for seed in seeds]
        return self.prefix[rows + [rows[-1]] * (block - len(rows))].to(self.device)


class _Recalled:
    """The network for one batch: its last answer before the last time is recalled, those before are nobody's."""

    def __init__(self, denoise: Denoise, count: list[int], before_last: int, kept: Tensor | None):
        self._denoise, self._count, self._kept = denoise, count, kept
        self._left = before_last if kept is not None else 0

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        if self._left > 0:
            assert self._kept is not None
            self._left -= 1
            return self._kept
        self._count[0] += x.shape[0]
        return self._denoise(x, sigma, label)


def read_prefix(file: str | None) -> Tensor | None:
    """Kept samples, float32 [N,C,H,W]; None where there are none. Raises StorageError when they are damaged."""
    if file is None or not Path(file).is_file():
        return None
    return torch.from_numpy(read_arrays(Path(file))["samples"])


def spent_on(file: str) -> int | None:
    """What a file of kept samples took; None where there is none. Raises StorageError when it is damaged."""
    return int(read_arrays(Path(file))["spent"]) if Path(file).is_file() else None


def write_prefix(file: str, samples: Tensor, spent: int) -> None:
    """Keeps samples as they are, in float32: rounded to pixels they would not be gone on from to the bit."""
    write_arrays(Path(file), {"samples": samples.numpy(), "spent": np.array(spent)})
