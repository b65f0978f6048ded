"""Everything a run carries from step to step, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmray.config.checkpoint_facts import CheckpointFacts, ema_file
from cmray.config.run import OptimizerConfig, RunConfig
from cmray.core.ema import EMA
from cmray.core.errors import CheckpointError
from cmray.core.precond import Denoise, Denoiser, make_precond
from cmray.core.rng import derive_seed
from cmray.engine.checkpoint import Parts, load_part
from cmray.engine.flat import FlatModule, GradientExchange
from cmray.engine.model import load_model
from cmray.engine.session import Session
from cmray.objectives import ObjectiveContext, Roles

STUDENT, TARGET, OPTIMIZER = "student.safetensors", "target.safetensors", "optimizer.safetensors"


class TrainState:
    """Student, target, teacher, EMAs, optimizer and the counters of one run."""

    def __init__(
        self, run: RunConfig, shape: tuple[int, int, int], num_classes: int, teacher: Path | None, session: Session
    ):
        self.run, self.shape, self.session = run, shape, session
        self.num_classes = num_classes if run.net.class_conditional else 0
        self.step, self.nimg, self.seconds = 0, 0, 0.0
        noise = run.noise
        if noise.sigma_data is None:
            raise ValueError("noise.sigma_data must be resolved before training")
        context = ObjectiveContext(
            noise.sigma_min, noise.sigma_max, noise.rho, noise.sigma_data, run.train.steps, session.device
        )
        self.objective = run.objective.build(context)
        self._precond = make_precond(run.objective.precond, noise.sigma_data, noise.sigma_min)
        self.student = FlatModule(self._new_net(), trained=True)
        teacher_model = None
        if run.objective.needs_teacher:
            if teacher is None:
                raise ValueError("this objective needs a teacher's checkpoint")
            teacher_model = load_model(teacher, session.device)
            if teacher_model.shape != shape:
                raise CheckpointError(f"teacher {teacher} makes {teacher_model.shape} images, the data has {shape}")
            if run.objective.starts_from == "teacher":
                self.student.load(dict(teacher_model.net.state_dict()))
        self.target = FlatModule(self._new_net(), trained=False) if run.objective.needs_target else None
        if self.target is not None:
            self.target.params.data.copy_(self.student.params.data)
        self.ema = EMA(self.student.params, run.train.ema)
        self.optimizer = make_optimizer(run.train.optimizer, self.student.params)
        self.exchange = GradientExchange(self.student) if session.world_size > 1 else None
        self.roles = Roles(
            student=self._denoiser(self.student.module),
            target=self._denoiser(self.target.module) if self.target else None,
            teacher=self._autocast_of(teacher_model.denoise) if teacher_model else None,
        )

    def _new_net(self) -> nn.Module:
        # every rank, and every resume, starts from the same weights
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("init", self.run.seed))
            return self.run.net.build(self.shape, self.num_classes).to(self.session.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.run.train.precision == "bf16":
            return torch.autocast(self.session.device.type, torch.bfloat16)
        return nullcontext()

    def _denoiser(self, net: nn.Module) -> Denoise:
        def raw(x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
            with self._autocast():
                return net(x, c_noise, label)

        return Denoiser(raw, self._precond)

    def _autocast_of(self, denoise: Denoise) -> Denoise:
        def wrapped(x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
            with self._autocast():
                return denoise(x, sigma, label)

        return wrapped

    def labels(self, label: Tensor | None) -> Tensor | None:
        return label if self.num_classes else None

    def exchange_on(self, on: bool) -> None:
        """Whether the next backward pass is the last of its batch, so that gradients may travel."""
        if self.exchange is not None:
            self.exchange.active = on

    def lr_at(self, step: int) -> float:
        """Linear warm-up over `warmup_steps`, then a cosine from lr to lr * final_lr at the last step."""
        config = self.run.train.optimizer
        if step < config.warmup_steps:
            return config.lr * (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, self.run.train.steps - config.warmup_steps)
        return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2)

    def update(self) -> Tensor:
        """One optimizer step from the gradient, then target and EMAs. Returns the gradient norm before clipping."""
        grad = self.student.params.grad
        assert grad is not None
        if self.exchange is not None:
            self.exchange.finish()
        norm = grad.norm()
        if self.run.train.grad_clip is not None:
            grad.mul_((self.run.train.grad_clip / (norm + 1e-6)).clamp(max=1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(self.step)
        self.optimizer.step()
        if self.target is not None:
            self.target.params.data.lerp_(self.student.params.data, 1 - self.objective.target_mu(self.step))
        self.ema.update(self.student.params)
        self.step += 1
        self.nimg += self.run.train.batch_size
        return norm

    def ema_denoiser(self) -> Denoise:
        """The first EMA as a denoiser, with weights of their own."""
        net = FlatModule(self._new_net(), trained=False)
        net.params.data.copy_(self.ema.averages[self.run.train.ema[0]])
        net.module.eval()
        return Denoiser(net.module, self._precond)

    def parts(self) -> Parts:
        parts: dict[str, dict[str, Tensor]] = {STUDENT: self.student.named(self.student.params)}
        if self.target is not None:
            parts[TARGET] = self.target.named(self.target.params)
        for rate, average in self.ema.averages.items():
            parts[ema_file(rate)] = self.student.named(average)
        state = self.optimizer.state[self.student.params]
        parts[OPTIMIZER] = {name: value.detach().cpu().clone() for name, value in state.items()}
        return parts

    def facts(self) -> CheckpointFacts:
        return CheckpointFacts(
            step=self.step,
            nimg=self.nimg,
            seconds=self.seconds,
            shape=self.shape,
            num_classes=self.num_classes,
            run_config=self.run.model_dump(mode="json"),
            files={},
            scalars=self.objective.schedule(max(0, self.step - 1)),
        )

    def load(self, facts: CheckpointFacts, path: Path) -> None:
        """Takes everything from a checkpoint. Raises CheckpointError when it belongs to another network."""

        def part(name: str) -> dict[str, Tensor]:
            return load_part(path, name, facts.files[name])

        try:
            self.student.load(part(STUDENT))
            if self.target is not None:
                self.target.load(part(TARGET))
            for rate, average in self.ema.averages.items():
                self.student.load(part(ema_file(rate)), into=average)
            optimizer = part(OPTIMIZER)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this run: {error}") from None
        # the optimizer knows on which device it wants its scalar `step`: a fused one on the GPU, others on the CPU
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": {0: optimizer}})
        self.step, self.nimg, self.seconds = facts.step, facts.nimg, facts.seconds


def make_optimizer(config: OptimizerConfig, params: nn.Parameter) -> torch.optim.Optimizer:
    """The optimizer over one flat parameter; fused where torch has a fused one."""
    common: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.name == "radam":
        return torch.optim.RAdam([params], **common, decoupled_weight_decay=True)
    cls = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return cls([params], **common, fused=True)
