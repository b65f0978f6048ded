"""Editing images with a trained network, in blocks of fixed size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from cmray.core.errors import CmrayError, UnknownNameError, nearest
from cmray.editing import EditingTask, Levels, edited, editing_tasks
from cmray.editing.base import Row
from cmray.engine.model import Model
from cmray.samplers import Sampler, samplers

#: rows that go through the network together; every block is filled up to it, so that a result has the same bits
#: whatever else is edited in the same call, and a single image does not cost many
BLOCK = 8


@dataclass(frozen=True)
class Result:
    """One edited image.

    Args:
        row: of which image and seed; of an interpolation the frame, its seeds and alpha.
        image: float32 [C,H,W] in [-1, 1].
        given: what the model was shown of the input, [C,H,W]: the known part, or the noisy image for denoise.
        times: noise levels, descending.
        nfe: network evaluations it took.
        known_error: the largest difference to the input's known part, in values of [-1, 1].
    """

    row: Row
    image: Tensor
    given: Tensor
    times: tuple[float, ...]
    nfe: int
    known_error: float


def make_task(name: str, options: Mapping[str, Any]) -> EditingTask:
    """A task by name. Raises CmrayError for a name that is unknown and options that the task has not or refuses."""
    cls = editing_tasks.get(name)
    known = [field for field in cls.model_fields if field != "name"]
    for key in options:
        if key not in known:
            takers = [n for n, other in editing_tasks.classes().items() if key in other.model_fields and key != "name"]
            if takers:
                raise CmrayError(f"{name} has no option {key}; it is for {', '.join(takers)}")
            raise UnknownNameError(f"{name} has no option '{key}'; {nearest(key, known)}")
    try:
        return cls.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        of, kinds = first["loc"][:1], [e["type"] for e in error.errors()]
        many = options.get(str(of[0])) if of else None
        if isinstance(many, list | tuple) and kinds[0] in ("missing", "too_long"):
            wanted = first.get("ctx", {}).get("max_length", len(many) + kinds.count("missing"))
            raise CmrayError(f"{name}: {of[0]} takes {wanted} numbers, found {len(many)}") from None
        where = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        raise CmrayError(f"{name}: {where} {text}" if where else text) from None


def edit(
    model: Model,
    task: EditingTask,
    images: Tensor | None,
    num: int | None = None,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    steps: int | None = None,
    times: Sequence[float] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """Edits images with a consistency model (Consistency Models, Alg. 4) or with a denoiser's ODE solver.

    A result depends on the weights, the task, its image, its seed, its label and the noise levels only.

    Args:
        images: float32 [N,C,H,W] in [-1, 1], of the model's size; None where the task starts from noise alone.
        num: results per image, of the seeds seed, ..., seed + num - 1; of interpolate the number of ways.
        labels: classes, repeated in turn over the images; by default each seed draws its own.
        steps: how many noise levels; times: the levels themselves, descending. By default the task's.
        progress: told how many of all results there are.

    Raises:
        CmrayError: images of another size, too few of them, a task that does not suit the model, levels out of range,
            labels for an unconditional model.
    """
    kind = model.run.objective.kind
    if kind == "few-step":
        raise CmrayError("editing takes a consistency model or a denoiser; this model was distilled to fixed steps")
    task.check(model.shape)
    if images is None:
        if task.needs_images:
            raise CmrayError(f"{task.name} needs images")
        images = torch.zeros(0, *model.shape)
    if tuple(images.shape[1:]) != tuple(model.shape):
        found, wanted = ("x".join(map(str, shape)) for shape in (images.shape[1:], model.shape))
        raise CmrayError(f"the images are {found}, the model's are {wanted} (C x H x W)")
    if not images.isfinite().all() or (len(images) and images.abs().max() > 1):
        raise CmrayError("images for editing must be finite and in [-1, 1]")
    num = task.default_num if num is None else num
    if num < 1 or seed < 0 or seed + num > 2**63:
        raise CmrayError(f"num is {num} and seed {seed}; at least 1 result, of seeds from 0 to 2**63 - 1")
    plans = [_sampler(model, schedule) for schedule in _schedules(model, task, len(images), steps, times)]
    rows = task.rows(len(images), num, seed)
    label = _labels(model, labels, rows)
    known = task.prepare(images.to(model.device))
    results: list[Result] = []
    total = len(plans) * len(rows)
    for sampler in plans:
        for start in range(0, len(rows), BLOCK):
            count = min(BLOCK, len(rows) - start)
            block = [*rows[start : start + count], *[rows[start + count - 1]] * (BLOCK - count)]
            part = known.rows([row.image for row in block])
            noise = task.noise(block, model.shape, model.device)
            given = None if label is None else label[start : start + count]
            if given is not None:
                given = torch.cat([given, given[-1:].expand(BLOCK - count)]).to(model.device)
            elif model.num_classes:
                given = noise.integers(model.num_classes)
            out = edited(task, model.denoise, sampler, part, noise, given)
            errors = task.known_error(out, part)
            seen = task.seen(part, task.noise(block, model.shape, model.device), sampler.sigmas[-1])
            for i in range(count):
                facts = (tuple(sampler.times), sampler.nfe, float(errors[i]))
                results.append(Result(block[i], out[i].cpu(), seen[i].cpu(), *facts))
            progress(len(results), total)
    return results


def _schedules(
    model: Model, task: EditingTask, count: int, steps: int | None, times: Sequence[float] | None
) -> list[list[float]]:
    noise = model.run.noise
    levels = Levels(noise.sigma_min, noise.sigma_max, noise.rho)
    if times is not None:
        if steps is not None:
            raise CmrayError("steps and times both say how many noise levels there are; leave one of them out")
        if getattr(task, "level", None) is not None:
            raise CmrayError("level and times both say where the noise levels begin; leave one of them out")
        chosen = [[float(t) for t in times]]
    else:
        if steps is not None and steps < 1:
            raise CmrayError(f"steps is {steps}; there is at least 1")
        consistency = model.run.objective.kind == "consistency"
        chosen = task.schedules(levels, max(model.shape[1:]), steps, consistency, count)
    for schedule in chosen:
        if not schedule or any(a <= b for a, b in itertools.pairwise(schedule)):
            raise CmrayError(f"noise levels must descend, found {schedule}")
        solved = len(schedule) > 1 and model.run.objective.kind == "denoiser"  # to sigma_min, as usual
        low_enough = schedule[-1] > noise.sigma_min or (solved and schedule[-1] == noise.sigma_min)
        if not low_enough or schedule[0] > noise.sigma_max:
            raise levels.out_of_range(schedule)
    return chosen


def _sampler(model: Model, times: Sequence[float]) -> Sampler:
    """Algorithm 1 for a consistency function, EDM's Heun for a denoiser."""
    sigmas = tuple(reversed(times))
    if model.run.objective.kind == "denoiser":
        return samplers.parse({"name": "edm-heun", "sigmas": sigmas})
    sigma_min = model.run.noise.sigma_min if model.run.objective.precond == "boundary" else 0.0
    return samplers.parse({"name": "multistep", "sigmas": sigmas, "sigma_min": sigma_min})


def _labels(model: Model, labels: Sequence[int] | None, rows: Sequence[Row]) -> Tensor | None:
    if labels is None:
        return None
    if not model.num_classes:
        raise CmrayError("labels are given, but the model is not class-conditional")
    if not labels or not all(0 <= label < model.num_classes for label in labels):
        raise CmrayError(f"labels are 0 to {model.num_classes - 1}, found {', '.join(map(str, labels)) or 'none'}")
    return torch.tensor([labels[row.group % len(labels)] for row in rows])
