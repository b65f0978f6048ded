"""Filling a hole."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor

from cmray.editing.base import editing_tasks
from cmray.editing.holes import Holed


@editing_tasks.register("inpaint")
class Inpaint(Holed):
    """Fills the hole and keeps every other value to the bit. A = I, Omega is the hole (Consistency Models, App. D)."""

    @model_validator(mode="after")
    def _has_a_hole(self) -> Self:
        if self.num_given != 1:
            raise ValueError(f"inpaint takes one of mask, box and word, found {self.num_given or 'none'} of them")
        return self

    def unknown(self, part: Tensor) -> Tensor:
        return torch.from_numpy(self.hole(part.shape[2], part.shape[3])).to(part.device)
