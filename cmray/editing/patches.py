"""Tasks that know one direction of every group of values: the luma of a pixel, the mean of a patch."""

from __future__ import annotations

import torch
from torch import Tensor

from cmray.editing.base import EditingTask, Known

#: halvings of the interval that holds the shift; float64 has no more bits
_HALVINGS = 60


def reflected(groups: Tensor, u: Tensor) -> Tensor:
    """Q g for every g in groups [..., n]: Q = I - 2 v v^T / v^T v with v = e_1 - u, the reflection of u onto e_1.

    Q is orthogonal, symmetric and its own inverse, and its first row is u, so that the first coefficient of Q g is
    u . g. The paper completes u to a basis by a QR decomposition; which basis it is makes no difference to what is
    kept. Applied without the matrix: n products a group instead of n^2.

    Args:
        u: unit vector [n], n >= 2, not e_1.
    """
    v = -u
    v[0] += 1
    return groups - v * ((groups * v).sum(-1, keepdim=True) * (2 / (v * v).sum()))


def shifted_into_range(groups: Tensor, u: Tensor, wanted: Tensor) -> Tensor:
    """The nearest g' to g with values in [-1, 1] and u . g' = wanted, for every g in groups [..., n].

    It is clip(g + s u), the projection onto a box and a plane, with the s that gives `wanted`: found by bisection, as
    u . clip(g + s u) grows with s.

    Args:
        u: [n], every value > 0.
        wanted: [...], at most sum(u) in size.
    """
    g, u, wanted = groups.double(), u.double(), wanted.double()
    reach = (1 + g.abs().amax(-1)) / u.min()
    low, high = -reach, reach
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        small = ((g + middle[..., None] * u).clamp(-1, 1) * u).sum(-1) < wanted
        low, high = torch.where(small, middle, low), torch.where(small, high, middle)
    return (g + high[..., None] * u).clamp(-1, 1).to(groups.dtype)


class OneDirection(EditingTask):
    """A reflects every group of n values so that the first coefficient is known and the other n - 1 unknown."""

    def groups(self, x: Tensor) -> Tensor:
        """x [B,C,H,W] as groups of values [B, ..., n]."""
        raise TypeError(f"{type(self).__name__} does not define groups")

    def ungroup(self, groups: Tensor) -> Tensor:
        """The inverse of `groups`."""
        raise TypeError(f"{type(self).__name__} does not define ungroup")

    def direction(self) -> Tensor:
        """u, the unit vector [n] along which a group is known; every value > 0."""
        raise TypeError(f"{type(self).__name__} does not define direction")

    def transform(self, x: Tensor) -> Tensor:
        return reflected(self.groups(x), self.direction().to(x))

    def inverse(self, part: Tensor) -> Tensor:
        return self.ungroup(reflected(part, self.direction().to(part)))

    def unknown(self, part: Tensor) -> Tensor:
        return torch.arange(part.shape[-1], device=part.device) > 0

    def into_range(self, x0: Tensor, known: Known) -> Tensor:
        return self.ungroup(shifted_into_range(self.groups(x0), self.direction().to(x0), known.part[..., 0]))
