"""A trained model in Python: what `cmray.load` opens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cmray.config.run import RunConfig
from cmray.core.arguments import is_many, one_line, reals, whole, wholes
from cmray.core.errors import CmrayError
from cmray.core.precond import from_pixels, to_pixels
from cmray.engine.model import SAMPLE_BLOCK, Model, SamplerName
from cmray.engine.results import Subject
from cmray.engine.searched import SearchedTimes, Times, name_of, sampler_for, searched_times
from cmray.objectives import Kind
from cmray.samplers import Moment, Sampler

if TYPE_CHECKING:
    from cmray.engine.edit import Result


class TrainedModel:
    """The weights of one checkpoint. Nothing changes in it after it is made: threads may share it.

        model = cmray.load("quickstart/cd-1a2b3c")
        model.sample(16)                            # one step, float32 [16,C,H,W] in [-1, 1]
        model.sample(16, times=[80, 0.8], seed=5)   # two steps
        model.sample(16, nfe=2, times="searched", labels=[3], uint8=True)
        model.denoise(x, 0.5)
        model.edit("inpaint", images, box=(2, 2, 4, 4))

    Args:
        model: network, preconditioning and run config.
        folder: of the trial, where its searches are recorded; of a bare checkpoint the checkpoint itself.
        checkpoint: the folder of the weights.
    """

    def __init__(self, model: Model, folder: Path, checkpoint: Path):
        self.model = model
        self.subject = Subject(folder, checkpoint, model.run, model.weights, model.weights_sha256)

    def __repr__(self) -> str:
        channels, height, width = self.shape
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        what = f"{self.kind}, {channels}x{height}x{width}{classes}, {self.weights} on {self.device}"
        return f"<cmray model {self.name}: {what}>"

    # what it is

    @property
    def name(self) -> str:
        """EXPERIMENT/TRIAL; of a bare checkpoint its folder."""
        return name_of(self.subject)

    @property
    def run(self) -> RunConfig:
        """The resolved config that it was trained with."""
        return self.subject.run

    @property
    def kind(self) -> Kind:
        """How it is sampled: "consistency", "denoiser" (a teacher), or "few-step" (distilled to a number of steps)."""
        return self.subject.kind

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self.model.shape

    @property
    def num_classes(self) -> int:
        """Of a class-conditional model, whose labels are 0 to num_classes - 1; else 0."""
        return self.model.num_classes

    @property
    def sigma_min(self) -> float:
        """The lowest noise level, epsilon."""
        return self.run.noise.sigma_min

    @property
    def sigma_max(self) -> float:
        """The highest noise level, T, from which samples start."""
        return self.run.noise.sigma_max

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def weights(self) -> str:
        """ "ema RATE" or "student"."""
        return self.model.weights

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the file of its weights."""
        return self.model.weights_sha256

    def searched(self) -> dict[int, SearchedTimes]:
        """By network evaluations, the best times that are recorded for these weights. Raises StorageError."""
        return searched_times(self.subject.folder, self.weights_sha256)

    # what it does

    def sampler(
        self, nfe: int | None = None, times: Times | None = None, sampler: SamplerName | None = None
    ) -> Sampler:
        """How `sample` samples with these arguments: its `nfe`, `times` and `title` can be asked.

        Raises:
            CmrayError: what does not fit the model or one another.
        """
        return sampler_for(self.subject, nfe, times, sampler)

    def sample(
        self,
        n: int = 1,
        *,
        nfe: int | None = None,
        times: Times | None = None,
        labels: int | Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        sampler: SamplerName | None = None,
        uint8: bool = False,
        block: int = SAMPLE_BLOCK,
    ) -> Tensor:
        """Images, on the CPU: float32 [n,C,H,W] in [-1, 1], or uint8 in [0, 255].

        Args:
            n: >= 1.
            nfe: network evaluations an image, >= 1. Default: one step; of a teacher 35 (18 Heun steps).
            times: noise levels of a consistency model, descending, in (sigma_min, sigma_max]; or "searched".
            labels: of a class-conditional model, 0 to num_classes - 1, repeated in turn; by default each seed draws
                its own.
            seed: image i has seed + i; or n seeds. The same seed gives the same image, whatever n is.
            sampler: a registered sampler, or a mapping of its name and options, such as
                {"name": "edm-heun", "S_churn": 40}.
            block: images that go through the network together, filled up; memory is that of one block. An image has
                the same bits at any n; at another block size they may differ by rounding, and a small one answers
                sooner where few images are wanted.

        Raises:
            CmrayError: an argument that is out of range or does not fit the model.
        """
        how = self.sampler(nfe, times, sampler)
        seeds = self.seeds(n, seed)
        block = whole("block", block)
        if block < 1:
            raise CmrayError(f"block is {block}; at least 1 image goes through the network")
        images = self.model.images(how, seeds, self.labels(len(seeds), labels), block).clamp_(-1, 1)
        return to_pixels(images) if uint8 else images

    def trajectory(
        self,
        n: int = 1,
        *,
        nfe: int | None = None,
        times: Times | None = None,
        labels: int | Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        sampler: SamplerName | None = None,
    ) -> tuple[list[Moment], Tensor]:
        """The way to the images that `sample` gives with these arguments, and the images, not clipped.

        Args:
            n: 1 to 64; the others as in `sample`.

        Returns:
            A Moment (sigma, noisy, said) for each step: the noise level, x [n,C,H,W] at it (an image plus sigma times
            unit noise), and the network's answer [n,C,H,W]; then the images [n,C,H,W]. On the CPU.

        Raises:
            CmrayError: an argument that is out of range or does not fit the model.
        """
        if whole("n", n) > SAMPLE_BLOCK:
            raise CmrayError(f"n is {n}; a trajectory is of {SAMPLE_BLOCK} images at most")
        seeds = self.seeds(n, seed)
        return self.model.trajectory(self.sampler(nfe, times, sampler), seeds, self.labels(len(seeds), labels))

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: float | Tensor, labels: int | Sequence[int] | None = None) -> Tensor:
        """What the network says is behind noise: f(x, sigma) of a consistency model, D(x, sigma) of a denoiser.

        Args:
            x: image + sigma * unit noise, float [B,C,H,W] on any device; images are in [-1, 1].
            sigma: one noise level, or one an image [B]; in [sigma_min, sigma_max].
            labels: as in `sample`; a class-conditional model needs them.

        Returns:
            float32 [B,C,H,W] on the device of x, about [-1, 1], not clipped.

        Raises:
            CmrayError: another shape, a noise level out of range, or missing labels.
        """
        if not isinstance(x, Tensor):
            raise CmrayError(f"x is {_called(x)}; give a torch.Tensor")
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape or not len(x) or not x.is_floating_point():
            asked = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
            raise CmrayError(f"x is {asked}; this model takes float [B, {', '.join(map(str, self.shape))}]")
        try:
            level = torch.as_tensor(sigma, dtype=torch.float32, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            raise CmrayError(f"sigma is {one_line(sigma)}; give one noise level, or one for each image") from None
        if level.ndim > 1 or (level.ndim == 1 and len(level) != len(x)):
            raise CmrayError(f"sigma is {list(level.shape)}; give one noise level, or one for each of {len(x)} images")
        low, high = torch.tensor([self.sigma_min, self.sigma_max])
        if not bool(((low <= level.cpu()) & (level.cpu() <= high)).all()):
            raise CmrayError(f"sigma is {one_line(sigma)}; noise levels are {self.sigma_min} to {self.sigma_max}")
        label = self.labels(len(x), labels)
        if self.num_classes and label is None:
            raise CmrayError(
                f"labels are missing; the model is class-conditional, with labels 0 to {self.num_classes - 1}"
            )
        answer = self.model.denoise(
            x.to(self.device, torch.float32),
            level.expand(len(x)),
            None if label is None else label.to(self.device),
        )
        return answer.to(x.device)

    def edit(
        self,
        task: str,
        images: Tensor | np.ndarray | None = None,
        *,
        num: int | None = None,
        labels: int | Sequence[int] | None = None,
        seed: int = 0,
        steps: int | None = None,
        times: Sequence[float] | None = None,
        uint8: bool = False,
        **options: Any,
    ) -> Tensor:
        """Edits images that the model was never trained to edit   (Consistency Models, Alg. 4).

            model.edit("inpaint", images, box=(2, 2, 4, 4), num=3)      # [N,3,C,H,W]
            model.edit("colorize", images), model.edit("superres", images, factor=4)
            model.edit("stroke", paintings, level=0.5)
            model.edit("denoise", images, level=(0.5, 2.0))             # [N,2,C,H,W], a level each
            model.edit("interpolate", between=(3, 8), frames=12)        # [1,12,C,H,W], a frame each

        What is known of an image is kept, to the bit by inpaint and stroke, to about 1e-6 by colorize and superres.

        Args:
            task: the name of one in `cmray.editing`, whose class says what its options are.
            images: [N,C,H,W] of the model's shape: float in [-1, 1], or uint8. superres takes images of full size too,
                and keeps the means of their patches. interpolate takes two, or none.
            num: results per image, >= 1, of the seeds seed, ..., seed + num - 1. Default: 3; of denoise and
                interpolate 1.
            labels: of a class-conditional model, 0 to num_classes - 1, repeated in turn over the images; by default
                each seed draws its own.
            seed: 0 to 2**63 - num.
            steps: how many noise levels, >= 1; times: the levels, descending, in (sigma_min, sigma_max]. Default: the
                task's.

        Returns:
            On the CPU, float32 [N,K,C,H,W] in [-1, 1], or uint8 in [0, 255]: K results for each image (of interpolate
            for each way), by seed, then by level or frame.

        Raises:
            CmrayError: an unknown task or option, or what does not fit the model.
        """
        results = self.edits(task, images, num=num, labels=labels, seed=seed, steps=steps, times=times, **options)
        out = torch.stack([result.image for result in results])
        out = out.unflatten(0, (1 + results[-1].row.group, -1))
        return to_pixels(out) if uint8 else out

    def edits(
        self,
        task: str,
        images: Tensor | np.ndarray | None = None,
        *,
        num: int | None = None,
        labels: int | Sequence[int] | None = None,
        seed: int = 0,
        steps: int | None = None,
        times: Sequence[float] | None = None,
        **options: Any,
    ) -> list[Result]:
        """The results of `edit` one by one, each with what the model was shown, its levels and how well it kept that.

        Arguments and errors as in `edit`; by image, then by seed, then by level or frame.
        """
        from cmray.engine.edit import edit, make_task

        if images is not None:
            images = _pictures(images)
        results = edit(
            self.model,
            make_task(task, options),
            images,
            None if num is None else whole("num", num),
            whole("seed", seed),
            None if labels is None else wholes("labels", labels),
            None if steps is None else whole("steps", steps),
            None if times is None else reals("times", times),
        )
        return sorted(results, key=lambda result: (result.row.group, result.row.seed))  # stable: levels stay in order

    # its arguments

    def seeds(self, n: int, seed: int | Sequence[int] = 0) -> Sequence[int]:
        """A seed for each of n images. Raises CmrayError."""
        n = whole("n", n)
        if n < 1:
            raise CmrayError(f"n is {n}; ask for at least 1 image")
        given = wholes("seed", seed)
        seeds = given if is_many(seed) else range(given[0], given[0] + n)
        if len(seeds) != n:
            raise CmrayError(f"{len(seeds)} seeds are given for {n} images; give one number, or one for each image")
        if min(seeds) < 0 or max(seeds) >= 2**63:
            raise CmrayError(f"seeds are {min(seeds)} to {max(seeds)}; they must be 0 to 2**63 - 1")
        return seeds

    def labels(self, n: int, labels: int | Sequence[int] | None) -> Tensor | None:
        """A label for each of n images, int64 [n], the given ones in turn; None leaves them to the seeds.

        Raises:
            CmrayError: the model has no classes, or not these.
        """
        if labels is None:
            return None
        given = wholes("labels", labels)
        if not self.num_classes:
            raise CmrayError(f"labels are given, but {self.name} is not class-conditional; leave them out")
        if not given or not all(0 <= label < self.num_classes for label in given):
            raise CmrayError(f"labels are 0 to {self.num_classes - 1}, found {given}")
        return torch.tensor(list(itertools.islice(itertools.cycle(given), n)), dtype=torch.int64)


def _pictures(images: Any) -> Tensor:
    """float32 [N,...] in [-1, 1], of float or uint8. Raises CmrayError for what holds no images."""
    found = images
    if isinstance(images, np.ndarray) and images.dtype.kind in "fiub":
        found = torch.from_numpy(images)
    if not isinstance(found, Tensor) or found.is_complex() or not found.ndim or not len(found):
        what = "without images" if isinstance(found, Tensor) and found.ndim and not len(found) else _called(images)
        raise CmrayError(f"images is {what}; give a tensor or an array [N,C,H,W]")
    return from_pixels(found) if found.dtype == torch.uint8 else found.float()


def _called(value: object) -> str:
    kind = f"{value.dtype} ".removeprefix("torch.") if isinstance(value, Tensor | np.ndarray) else ""
    return f"a {kind}{type(value).__name__}"
