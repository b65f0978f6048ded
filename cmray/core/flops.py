"""Floating-point operations of a piece of work, counted by torch as it runs, on the meta device without any memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flops_of(work: Callable[[], Any]) -> int:
    """Operations of the matrix products, convolutions and attention in `work`, a multiplication and an addition as two.

    What is done element by element is not counted.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
