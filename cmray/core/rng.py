"""Random numbers that depend on what they are for, never on what was drawn before.

Samples: one counter-based generator per sample seed. Training: one generator per (seed, step, chunk).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

#: First sample seed of each purpose. Searched times are never reported on the seeds they were searched on.
SEED_BASE = {"sample": 0, "curve": 1 << 40, "search": 2 << 40, "report": 3 << 40}


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any tuple of integers and names, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on `device`, seeded by `derive_seed(*parts)`.

    torch's CPU generator keeps 32 bits of the seed, so among a million steps about a hundred share their noise with
    another step (never their images): harmless for training, and the reason why samples use Philox instead.
    """
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the global generator of `device`, the one that dropout draws from. Does not wait for the device."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A Philox generator, keyed by `derive_seed(*parts)`."""
    return np.random.Generator(np.random.Philox(key=derive_seed(*parts)))


class SampleNoise:
    """Unit Gaussian noise for a batch of samples, each from its own counter-based generator.

    The k-th call of `draw` gives sample i the k-th block of its own stream, so a sample depends on its seed only,
    not on the batch it is in.

    Args:
        seeds: one non-negative integer per sample, below 2**63.
        shape: (C, H, W).
        device: where the noise goes; it is drawn on the CPU so that every device sees the same numbers.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"):
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self._seeds = [int(seed) for seed in seeds]
        self._generators = [np.random.Generator(np.random.Philox(key=seed)) for seed in self._seeds]

    def draw(self) -> torch.Tensor:
        """z ~ N(0, I), float32 [B, C, H, W]."""
        out = np.empty((len(self._generators), *self.shape), dtype=np.float32)
        for row, generator in zip(out, self._generators, strict=True):
            generator.standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(out).to(self.device)

    def integers(self, high: int) -> torch.Tensor:
        """Class labels, uniform in [0, high), int64 [B]; from streams of their own."""
        labels = [int(np.random.Philox(key=seed).jumped().random_raw() % high) for seed in self._seeds]
        return torch.tensor(labels, dtype=torch.int64, device=self.device)
