"""Everything a run carries from step to step, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmray.config.checkpoint_facts import CheckpointFacts, ema_file
from cmray.config.needed_plugins import plugins_of
from cmray.config.run import RunConfig
from cmray.core.ema import EMA
from cmray.core.errors import CheckpointError
from cmray.core.precond import Denoiser, RawNet
from cmray.core.rng import derive_seed, seed_device
from cmray.engine.checkpoint import Parts, load_part
from cmray.engine.flat import FlatModule, GradientExchange
from cmray.engine.model import load_model
from cmray.engine.optimizers import make_optimizer
from cmray.engine.session import Session
from cmray.engine.spent import Cost
from cmray.objectives import ObjectiveContext, Roles, Transition

STUDENT, TARGET, OPTIMIZER = "student.safetensors", "target.safetensors", "optimizer.safetensors"
TEACHER, OBJECTIVE = "teacher.safetensors", "objective.safetensors"


class TrainState:
    """Student, target, teacher, EMAs, optimizer and the counters of one run."""

    def __init__(
        self, run: RunConfig, shape: tuple[int, int, int], num_classes: int, teacher: Path | None, session: Session
    ):
        self.run, self.shape, self.session = run, shape, session
        self.num_classes = num_classes if run.net.class_conditional else 0
        self.step, self.nimg, self.cost = 0, 0, Cost()
        self.dropout_seed = 0
        noise = run.noise
        if noise.sigma_data is None:
            raise ValueError("noise.sigma_data must be resolved before training")
        context = ObjectiveContext(
            noise.sigma_min, noise.sigma_max, noise.rho, noise.sigma_data, run.train.steps, session.device
        )
        self.objective = run.objective.build(context)
        self._precond = run.precond()
        self.student = FlatModule(self._new_net(), trained=True)
        self.teacher: FlatModule | None = None
        teacher_denoise = None
        if run.objective.uses_teacher:
            if teacher is None:
                raise ValueError("this objective needs a teacher's checkpoint")
            model = load_model(teacher, session.device)
            if model.shape != shape:
                raise CheckpointError(f"teacher {teacher} makes {model.shape} images, the data has {shape}")
            if run.objective.starts_from == "teacher":
                self.student.load(dict(model.net.state_dict()))
            if run.objective.needs_teacher:
                self.teacher = FlatModule(model.net, trained=False)
                precond = model.run.precond()
                if run.objective.replaces_teacher and precond != self._precond:
                    raise CheckpointError(
                        f"teacher {teacher} was trained with {precond}, but the student that follows it has "
                        f"{self._precond}"
                    )
                teacher_denoise = Denoiser(self._raw(model.net), precond)
        self.target = FlatModule(self._new_net(), trained=False) if run.objective.needs_target else None
        if self.target is not None:
            self.target.copy_from(self.student)
        self.ema = EMA(self.student.params, run.train.ema)
        self.optimizer = make_optimizer(run.train.optimizer, self.student.params)
        self.exchange = GradientExchange(self.student) if session.world_size > 1 else None
        self.roles = Roles(
            student=Denoiser(self._raw(self.student.module), self._precond),
            target=Denoiser(self._raw(self.target.module), self._precond) if self.target else None,
            teacher=teacher_denoise,
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

    def _raw(self, net: nn.Module) -> RawNet:
        """The network as a function, in the run's precision. A network with dropout draws the same mask at every call
        of one step, so that student and target see the same one."""
        drops = net.training and getattr(self.run.net, "dropout", 0) > 0
        forward: Any = net
        if self.run.train.compile:
            # the eager random numbers, so that masks are the same with and without gradients; where activations are
            # computed twice these are not reproduced, but the compiler's own are
            eager = drops and not getattr(self.run.net, "activation_checkpointing", False)
            forward = torch.compile(net, options={"fallback_random": True} if eager else None)

        def raw(x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
            if drops:
                seed_device(self.session.device, self.dropout_seed)
            with self._autocast():
                return forward(x, c_noise, label)

        return raw

    def begin(self, part: int) -> None:
        """Tells what the next loss is for: part `part` of the batch of the current step."""
        self.dropout_seed = derive_seed("dropout", self.run.seed, self.step, part)

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
        self.optimizer.step(self.lr_at(self.step))
        if self.target is not None:
            self.target.params.data.lerp_(self.student.params.data, 1 - self.objective.target_mu(self.step))
        self.ema.update(self.student.params)
        self.step += 1
        self.nimg += self.run.train.batch_size
        decision = self.objective.transition(self.step)
        if decision is not None:
            self._carry_out(decision)
        return norm

    def _carry_out(self, decision: Transition) -> None:
        if decision.teacher_from_student:
            assert self.teacher is not None
            self.teacher.copy_from(self.student)
        if decision.ema_from_student:
            self.ema = EMA(self.student.params, self.run.train.ema)
        if decision.reset_optimizer:
            self.optimizer = make_optimizer(self.run.train.optimizer, self.student.params)

    def frozen_net(self) -> FlatModule:
        """Another network of the student's kind, without gradients or dropout, for weights that are to be asked."""
        net = FlatModule(self._new_net(), trained=False)
        net.module.eval()
        return net

    def copy_average(self, into: FlatModule) -> None:
        """Copies the first EMA into a `frozen_net`."""
        into.copy_from(self.student, self.ema.averages[self.run.train.ema[0]])

    def parts(self) -> Parts:
        parts: dict[str, dict[str, Tensor]] = {STUDENT: self.student.named(self.student.params)}
        if self.target is not None:
            parts[TARGET] = self.target.named(self.target.params)
        if self.teacher is not None and self.run.objective.replaces_teacher:
            parts[TEACHER] = self.teacher.named(self.teacher.params)
        learned = self.objective.times.state()
        if learned:
            parts[OBJECTIVE] = {name: value.detach().cpu().clone() for name, value in learned.items()}
        for rate, average in self.ema.averages.items():
            parts[ema_file(rate)] = self.student.named(average)
        parts[OPTIMIZER] = {name: value.cpu().clone() for name, value in self.optimizer.state().items()}
        return parts

    def facts(self) -> CheckpointFacts:
        return CheckpointFacts(
            step=self.step,
            nimg=self.nimg,
            **asdict(self.cost),
            shape=self.shape,
            num_classes=self.num_classes,
            plugins=tuple(dict.fromkeys(p.title for p in plugins_of(self.run))),
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
            if self.teacher is not None and self.run.objective.replaces_teacher:
                self.teacher.load(part(TEACHER))
            if self.objective.times.learns:
                self.objective.times.load_state(part(OBJECTIVE))
            for rate, average in self.ema.averages.items():
                self.student.load(part(ema_file(rate)), into=average)
            self.optimizer.load(part(OPTIMIZER))
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this run: {error}") from None
        self.step, self.nimg = facts.step, facts.nimg
        self.cost = Cost(facts.seconds, facts.gpu_seconds, facts.cpu_seconds, facts.energy_joules)
