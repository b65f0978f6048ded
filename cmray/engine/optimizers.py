"""Optimizers over one flat vector of parameters.

torch's own would do, were it not for two costs: their base class imports the whole compiler, seconds in every new
process, and their RAdam makes a new vector for each of a dozen operations. These are held to torch's numbers by tests.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from cmray.config.run import OptimizerConfig

#: numbers that are taken through all operations of an update at once on a CPU: they stay in its cache
CPU_CHUNK = 131_072


class Optimizer(ABC):
    """Moments of the gradient, decoupled weight decay (Loshchilov & Hutter, ICLR 2019), and a step.

    Args:
        params: float32 [P] with a gradient of the same shape.
        config: lr is not read here, each step is told its own.
    """

    def __init__(self, params: nn.Parameter, config: OptimizerConfig):
        self.params, self.config = params, config
        self.steps = 0
        self.exp_avg = torch.zeros_like(params, requires_grad=False)
        self.exp_avg_sq = torch.zeros_like(params, requires_grad=False)

    @abstractmethod
    def step(self, lr: float) -> None:
        """Moves `params` against `params.grad`, which is left as it is."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: step (float32, a scalar), exp_avg and exp_avg_sq, float32 [P]."""
        return {"step": torch.tensor(float(self.steps)), "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from a `state`; an empty one is the beginning. Raises KeyError or ValueError for another's."""
        if not state:
            self.steps = 0
            self.exp_avg.zero_()
            self.exp_avg_sq.zero_()
            return
        for name, own in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)):
            if state[name].shape != own.shape:
                raise ValueError(f"{name} has {state[name].numel()} numbers, the network has {own.numel()}")
            own.copy_(state[name])
        self.steps = int(state["step"])


class Adam(Optimizer):
    """Kingma & Ba, ICLR 2015, in torch's fused kernel. With `coupled` decay is added to the gradient, not decoupled."""

    def __init__(self, params: nn.Parameter, config: OptimizerConfig, *, coupled: bool):
        super().__init__(params, config)
        self._kernel = torch.ops.aten._fused_adam_ if coupled else torch.ops.aten._fused_adamw_
        self._step = torch.zeros((), device=params.device)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.steps += 1
        assert self.params.grad is not None
        beta1, beta2 = self.config.betas
        self._kernel(
            [self.params],
            [self.params.grad],
            [self.exp_avg],
            [self.exp_avg_sq],
            [],
            [self._step.fill_(self.steps)],
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=self.config.weight_decay,
            eps=self.config.eps,
            amsgrad=False,
            maximize=False,
        )


class RAdam(Optimizer):
    """Liu et al., ICLR 2020: Adam whose first steps, with too few squares to trust, are momentum alone."""

    def __init__(self, params: nn.Parameter, config: OptimizerConfig):
        super().__init__(params, config)
        chunk = CPU_CHUNK if params.device.type == "cpu" else max(1, params.numel())
        self._chunk = chunk
        self._root = torch.empty(min(chunk, params.numel()), device=params.device)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.steps += 1
        assert self.params.grad is not None
        t, (beta1, beta2) = self.steps, self.config.betas
        first = 1 - beta1**t
        rectified = _rectification(t, beta2)
        vectors = (self.params, self.params.grad, self.exp_avg, self.exp_avg_sq)
        for p, g, m, v in zip(*(vector.split(self._chunk) for vector in vectors), strict=True):
            if self.config.weight_decay:
                p.mul_(1 - lr * self.config.weight_decay)
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            if rectified is None:
                p.add_(m, alpha=-lr / first)
            else:
                root = torch.sqrt(v, out=self._root[: len(v)]).add_(self.config.eps)
                p.addcdiv_(m, root, value=-lr / first * rectified)


def _rectification(t: int, beta2: float) -> float | None:
    """r_t sqrt(1 - beta2^t), what the step is multiplied with; None while the variance of the squares is not bounded
    (rho_t <= 5)."""
    second = 1 - beta2**t
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / second
    if length <= 5:
        return None
    r2 = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return math.sqrt(r2 * second)


def make_optimizer(config: OptimizerConfig, params: nn.Parameter) -> Optimizer:
    """The optimizer of a run."""
    if config.name == "radam":
        return RAdam(params, config)
    return Adam(params, config, coupled=config.name == "adam")
