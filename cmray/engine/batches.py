"""Which images a step sees: a function of (seed, step, rank, world size) and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cmray.core.precond import from_pixels
from cmray.core.rng import numpy_generator
from cmray.datasets import ImageDataset


class SampleOrder:
    """An endless walk through the dataset, shuffled anew each epoch, cut into global batches.

    Global position p is image perm_e[p mod n] of epoch e = p div n, so nothing is dropped at the end of an epoch,
    whatever the batch size and the number of workers.

    Args:
        count: n, images in the dataset.
        batch_size: images per step over all workers.
        seed: another seed, another order.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epochs: dict[int, np.ndarray] = {}

    def indices(self, step: int, part: int, parts: int) -> np.ndarray:
        """Dataset indices of part 0..parts-1 of the batch of a step. int64 [batch_size / parts]."""
        size, rest = divmod(self.batch_size, parts)
        if rest:
            raise ValueError(f"a batch of {self.batch_size} images has no {parts} equal parts")
        positions = step * self.batch_size + part * size + np.arange(size, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.count)
        out = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = self._permutation(int(epoch))[offsets[here]]
        return out

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs = {e: p for e, p in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = numpy_generator("order", self.seed, epoch).permutation(self.count)
        return self._epochs[epoch]


class ResidentBatches:
    """Batches from a dataset that is whole in memory, as uint8 (shared read-only memory is fine)."""

    def __init__(self, data: ImageDataset, batch_size: int, seed: int, device: torch.device):
        self.data, self.device = data, device
        self.order = SampleOrder(len(data), batch_size, seed)

    def batch(self, step: int, part: int, parts: int) -> tuple[Tensor, Tensor | None]:
        """(x0 float32 [B,C,H,W] in [-1,1], labels int64 [B] or None) on the device."""
        index = self.order.indices(step, part, parts)
        pixels = torch.from_numpy(self.data.images[index]).to(self.device, non_blocking=True)
        if self.data.labels is None:
            return from_pixels(pixels), None
        return from_pixels(pixels), torch.from_numpy(self.data.labels[index]).to(self.device, non_blocking=True)
