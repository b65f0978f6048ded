"""The typed configuration of one training run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cmray.config.fields import METRIC_HELP, Budgets, Metric
from cmray.config.resources import ResourcesConfig as ResourcesConfig
from cmray.core.errors import nearest
from cmray.core.precond import Precond, make_precond
from cmray.core.strict import NOT_IDENTITY, Strict
from cmray.datasets import datasets
from cmray.metrics.extractors import ExtractorConfig
from cmray.nn import NetField
from cmray.objectives import ObjectiveField


class DataConfig(Strict):
    """Which prepared dataset to train on: one that cmray can prepare by itself, or a folder."""

    name: str | None = Field(
        default=None,
        description="a dataset that `cmray data prepare` knows; prepared when missing",
        json_schema_extra=NOT_IDENTITY,
    )
    path: str | None = Field(
        default=None,
        description="a folder made by `cmray data prepare`: a path, or s3://, gs:// or another URL that pyarrow opens",
        json_schema_extra=NOT_IDENTITY,
    )
    dataset: str | None = Field(
        default=None,
        description="what `path` holds, a name that `cmray data prepare` knows: plans and estimates go by it while the "
        "folder is not there",
        json_schema_extra=NOT_IDENTITY,
    )
    digest: str | None = Field(default=None, description="SHA-256 of the content; filled in, or checked when given")
    feed: Literal["auto", "resident", "mmap", "stream"] = Field(
        default="auto",
        description="resident: one copy in the memory of every node; mmap: one mapped Arrow file; stream: read from "
        "the shards at every epoch; auto: resident up to 16 GiB of pixels, else stream",
        json_schema_extra=NOT_IDENTITY,
    )
    shuffle_buffer: int | None = Field(
        default=None,
        ge=1,
        description="images that are shuffled together when streaming; filled in with about 96 MiB of pixels",
    )
    flip: bool = Field(default=False, description="mirror each image left to right with probability 1/2")
    dequantize: bool = Field(
        default=False, description="add uniform noise of one of the 256 levels, so that values fill [-1, 1)"
    )

    @field_validator("dataset")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in datasets.names():
            raise ValueError(f"unknown dataset '{value}'; {nearest(value, datasets.names())}")
        return value

    @model_validator(mode="after")
    def _one(self) -> DataConfig:
        if (self.name is None) == (self.path is None):
            raise ValueError("give either data.name (such as digits) or data.path (a prepared folder)")
        if self.dataset is not None and self.name is not None:
            raise ValueError(
                f"data.dataset is {self.dataset}, which says what data.path holds, but data.name is {self.name}"
            )
        if self.shuffle_buffer is not None and self.feed in ("resident", "mmap"):
            raise ValueError(
                f"data.shuffle_buffer is for streaming, but data.feed is {self.feed}, which shuffles the whole dataset"
            )
        return self


class NoiseConfig(Strict):
    """The range of noise levels and the scale of the data."""

    sigma_min: float = Field(default=0.002, gt=0, description="epsilon, the lowest noise level; images are in [-1, 1]")
    sigma_max: float = Field(default=80.0, gt=0, description="T, the noise level that sampling starts from")
    rho: float = Field(
        default=7.0, gt=0, description="spacing of the levels between them; larger is denser at low noise"
    )
    sigma_data: float | None = Field(
        default=None, gt=0, description="standard deviation of the data; null takes the dataset's"
    )

    @model_validator(mode="after")
    def _ordered(self) -> NoiseConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self


class TeacherConfig(Strict):
    """The teacher: another experiment file, trained once if missing and shared by content, or a checkpoint."""

    experiment: Path | None = Field(
        default=None, description="experiment file, relative to the file that names it", json_schema_extra=NOT_IDENTITY
    )
    overrides: dict[str, Any] = Field(
        default={}, description="dotted keys set on the teacher's file, as with --set", json_schema_extra=NOT_IDENTITY
    )
    checkpoint: Path | None = Field(default=None, description="a checkpoint folder", json_schema_extra=NOT_IDENTITY)
    identity: str | None = Field(
        default=None, description="content hash of the teacher; filled in, or checked when given"
    )

    @model_validator(mode="after")
    def _one(self) -> TeacherConfig:
        if (self.experiment is None) == (self.checkpoint is None):
            raise ValueError("give either teacher.experiment (a file) or teacher.checkpoint (a folder)")
        if self.checkpoint is not None and self.overrides:
            raise ValueError("teacher.overrides applies to teacher.experiment, but teacher.checkpoint is given")
        return self


class OptimizerConfig(Strict):
    """The optimizer and its learning-rate schedule: linear warm-up, then cosine to lr * final_lr."""

    name: Literal["radam", "adam", "adamw"] = Field(default="radam", description="the update rule")
    lr: float = Field(default=1e-3, gt=0, description="learning rate after the warm-up")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="decay of both moments, each in [0, 1)")
    eps: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(
        default=0.0, ge=0, description="of adam in the gradient; of adamw and radam apart from it"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps in which lr rises from 0, at most train.steps")
    final_lr: float = Field(
        default=1.0, ge=0, le=1, description="fraction of lr at the end of a cosine; 1 keeps it constant"
    )

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"both betas must be in [0, 1), found {list(value)}")
        return value


class TrainConfig(Strict):
    """The loop: how long, how much at once, what is averaged and how often it is saved."""

    steps: int = Field(ge=1, description="optimizer steps of the run")
    batch_size: int = Field(ge=1, description="images per step over all workers")
    accumulate: int = Field(default=1, ge=1, description="parts in which each worker takes its share of a batch")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="how weights follow gradients")
    grad_clip: float | None = Field(default=None, gt=0, description="largest gradient norm; null does not clip")
    ema: tuple[float, ...] = Field(default=(0.999,), min_length=1, description="rates; the first is used for sampling")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the networks' operations; weights, losses and averages stay float32"
    )
    compile: bool = Field(default=False, description="torch.compile the networks: worth it for long runs")
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="steps; null saves ten times a run", json_schema_extra=NOT_IDENTITY
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, description="newest ones that stay on disk", json_schema_extra=NOT_IDENTITY
    )
    log_every: int | None = Field(
        default=None, ge=1, description="steps; null logs 50 times a run", json_schema_extra=NOT_IDENTITY
    )

    @field_validator("ema")
    @classmethod
    def _rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= rate < 1 for rate in value) or len(set(value)) != len(value):
            raise ValueError(f"ema rates must be distinct and in [0, 1), found {list(value)}")
        return value

    @model_validator(mode="after")
    def _intervals(self) -> TrainConfig:
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(f"optimizer.warmup_steps {self.optimizer.warmup_steps} exceeds steps {self.steps}")
        return self

    @property
    def checkpoint_interval(self) -> int:
        return self.checkpoint_every or max(1, -(-self.steps // 10))

    @property
    def log_interval(self) -> int:
        return self.log_every or max(1, -(-self.steps // 50))


class CurveConfig(Strict):
    """The cheap Fréchet curve that a run draws of itself while it trains, on its first EMA."""

    every: int = Field(ge=1, description="steps")
    num_samples: int = Field(default=2_048, ge=2, description="images of each point")
    nfe: Budgets = Field(default=(1,), min_length=1, description="network evaluations per image, a curve each")
    metric: Metric = Field(default="fd/digits", description=METRIC_HELP)

    @property
    def metric_name(self) -> str:
        """fd/EXTRACTOR."""
        return self.metric if isinstance(self.metric, str) else self.metric.name

    @property
    def extractor(self) -> str | ExtractorConfig:
        """Its name, or with options."""
        return self.metric.removeprefix("fd/") if isinstance(self.metric, str) else self.metric.extractor

    def due(self, step: int, steps: int) -> bool:
        """Whether a run of `steps` steps draws a point after `step` of them, 1 <= step <= steps."""
        return step % self.every == 0 or step == steps


class RunConfig(Strict):
    """Everything that decides what one training run computes."""

    seed: int = Field(default=0, ge=0, description="of weights, batches, noise and drawn times")
    data: DataConfig = Field(description="the images")
    net: NetField  # type: ignore[valid-type]
    noise: NoiseConfig = Field(default=NoiseConfig(), description="noise levels of training and sampling")
    objective: ObjectiveField  # type: ignore[valid-type]
    teacher: TeacherConfig | None = Field(
        default=None, description="a denoiser to learn from, where the objective does"
    )
    train: TrainConfig = Field(description="the loop")
    curve: CurveConfig | None = Field(
        default=None, description="what is measured while training; null measures nothing"
    )
    resources: ResourcesConfig = Field(default=ResourcesConfig(), description="what a trial takes of the machines")

    @model_validator(mode="after")
    def _agree(self) -> RunConfig:
        if self.objective.uses_teacher and self.teacher is None:
            why = "" if self.objective.needs_teacher else " to start from (objective.init)"
            raise ValueError(f"objective.name {self.objective.name} needs a teacher{why}, but teacher is not given")
        if self.objective.needs_jvp and self.train.compile:
            raise ValueError(
                f"train.compile is true, but objective.name {self.objective.name} differentiates the network forwards, "
                f"which torch.compile does not support"
            )
        if self.objective.needs_jvp and getattr(self.net, "activation_checkpointing", False):
            raise ValueError(
                f"net.activation_checkpointing is true, but objective.name {self.objective.name} differentiates the "
                f"network forwards, which it does not support"
            )
        self.objective.check_steps(self.train.steps)
        own = self.objective.own_nfe
        if own is not None and self.curve is not None and own not in self.curve.nfe:
            raise ValueError(
                f"curve.nfe is {list(self.curve.nfe)}, but objective.num_sigmas.end is {own}: a distilled model is "
                f"sampled in that many steps only"
            )
        times = getattr(self.objective, "times", None)
        if times is not None and times.name == "lognormal":
            low, high = (
                math.erf((math.log(s) - times.P_mean) / (math.sqrt(2) * times.P_std))
                for s in (self.noise.sigma_min, self.noise.sigma_max)
            )
            if high - low < 1e-3:
                raise ValueError(
                    f"objective.times.P_mean {times.P_mean} and P_std {times.P_std} draw almost nothing between "
                    f"noise.sigma_min {self.noise.sigma_min} and noise.sigma_max {self.noise.sigma_max}"
                )
        parts = self.resources.workers * self.train.accumulate
        if self.train.batch_size % parts:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} must be a multiple of resources.workers "
                f"{self.resources.workers} x train.accumulate {self.train.accumulate}"
            )
        if self.curve is not None and self.curve.every > self.train.steps:
            raise ValueError(f"curve.every {self.curve.every} exceeds train.steps {self.train.steps}")
        return self

    def precond(self) -> Precond:
        """The preconditioning of the network that this run trains. `noise.sigma_data` must be resolved."""
        if self.noise.sigma_data is None:
            raise ValueError("noise.sigma_data is not resolved")
        return make_precond(self.objective.precond, self.noise.sigma_data, self.noise.sigma_min)
