"""A trained network, ready to sample from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cmray.config.checkpoint_facts import CheckpointFacts, ema_file, read_checkpoint_facts
from cmray.config.run import RunConfig
from cmray.core.errors import CheckpointError, CmrayError
from cmray.core.grids import karras_sigmas
from cmray.core.precond import Denoise, Denoiser, make_precond
from cmray.core.rng import SampleNoise
from cmray.engine.checkpoint import load_part
from cmray.samplers import Sampler, samplers


@dataclass(frozen=True)
class Model:
    """Weights of one checkpoint as a denoiser (teachers) or a consistency function."""

    net: nn.Module
    denoise: Denoise
    run: RunConfig
    shape: tuple[int, int, int]
    num_classes: int  # 0 when unconditional
    weights: str  # "ema 0.999"
    weights_sha256: str
    device: torch.device

    def sampler(self, nfe: int, times: Sequence[float] | None = None) -> Sampler:
        return make_sampler(self.run, nfe, times)

    def images(self, sampler: Sampler, seeds: Sequence[int], labels: Tensor | None = None, block: int = 64) -> Tensor:
        """Images in [-1, 1], float32 [N,C,H,W] on the CPU, one per seed.

        The network always sees whole blocks (the last one is filled up and cut), so that an image has the same bits
        whatever else is asked for in the same call.

        Args:
            labels: int64 [N] for class-conditional models; by default each seed draws its own.
        """
        out = []
        for start in range(0, len(seeds), block):
            chunk = list(seeds[start : start + block])
            filled = chunk + [chunk[-1]] * (block - len(chunk))
            label = None
            if labels is not None:
                given = labels[start : start + block]
                label = torch.cat([given, given[-1:].expand(block - len(given))]).to(self.device)
            images = sample_seeds(self.denoise, sampler, filled, self.shape, self.num_classes, self.device, label)
            out.append(images[: len(chunk)].cpu())
        return torch.cat(out)


def sample_seeds(
    denoise: Denoise,
    sampler: Sampler,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    num_classes: int,
    device: torch.device,
    label: Tensor | None = None,
) -> Tensor:
    """One batch of images on `device`, one per seed. A class-conditional model without `label` draws them by seed."""
    noise = SampleNoise(seeds, shape, device)
    if num_classes and label is None:
        label = noise.integers(num_classes)
    return sampler.sample(denoise, noise, label)


def make_sampler(run: RunConfig, nfe: int, times: Sequence[float] | None = None) -> Sampler:
    """The sampler a run's model is used with at a budget of network evaluations.

    Args:
        nfe: 1 is one step from sigma_max. A consistency model takes nfe multistep evaluations; a denoiser takes
            (nfe + 1) / 2 Heun steps.
        times: noise levels of a consistency model, descending; by default nfe of them spread over the grid.

    Raises:
        CmrayError: a budget below 1 or, for a denoiser, even; times for a denoiser, out of range or not descending.
    """
    if nfe < 1:
        raise CmrayError(f"nfe is {nfe}; a sample takes at least 1 network evaluation")
    noise = run.noise
    denoiser = run.objective.is_denoiser
    if denoiser and times is not None:
        raise CmrayError("times are for consistency models; this model is a denoiser, use --nfe")
    if denoiser and nfe % 2 == 0:
        raise CmrayError(
            f"nfe {nfe} is even; a denoiser is sampled with Heun steps, n of which take 2 n - 1 evaluations"
        )
    if times is not None:
        if len(times) != nfe:
            raise CmrayError(f"nfe is {nfe}, but {len(times)} times are given")
        if any(a <= b for a, b in zip(times, list(times)[1:], strict=False)):
            raise CmrayError(f"times must descend, found {list(times)}")
        if not all(noise.sigma_min < t <= noise.sigma_max for t in times):
            raise CmrayError(
                f"times must be above sigma_min {noise.sigma_min} and at most sigma_max {noise.sigma_max}, "
                f"found {list(times)}"
            )
    elif nfe > 1:
        count = (nfe + 1) // 2 if denoiser else nfe + 1
        grid = karras_sigmas(count, noise.sigma_min, noise.sigma_max, noise.rho)
        times = [float(s) for s in reversed(grid if denoiser else grid[1:])]
    else:
        times = [noise.sigma_max]
    sigmas = tuple(sorted(float(t) for t in times))
    if nfe == 1:
        return samplers.parse({"name": "one-step", "sigmas": sigmas})
    if denoiser:
        return samplers.parse({"name": "edm-heun", "sigmas": sigmas})
    return samplers.parse({"name": "multistep", "sigmas": sigmas, "sigma_min": noise.sigma_min})


def load_model(folder: Path, device: torch.device, weights: str | None = None) -> Model:
    """The network of a checkpoint.

    Args:
        weights: "student" or "ema RATE"; by default the first EMA.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or has no such weights.
    """
    facts = read_checkpoint_facts(folder)
    run = facts.run
    file = _weights_file(facts, weights, folder)
    net = run.net.build(facts.shape, facts.num_classes)
    tensors = load_part(folder, file, facts.files[file])
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder} does not hold the network its manifest names: {str(error).splitlines()[0]}"
        ) from None
    net = net.to(device).eval().requires_grad_(False)
    assert run.noise.sigma_data is not None
    precond = make_precond(run.objective.precond, run.noise.sigma_data, run.noise.sigma_min)
    shown = "student" if file.startswith("student") else f"ema {file.removeprefix('ema-').removesuffix('.safetensors')}"
    return Model(net, Denoiser(net, precond), run, facts.shape, facts.num_classes, shown, facts.files[file], device)


def _weights_file(facts: CheckpointFacts, weights: str | None, folder: Path) -> str:
    if weights is None:
        return facts.weights_file
    known = {"student": "student.safetensors", **{f"ema {r}": ema_file(r) for r in facts.run.train.ema}}
    if weights not in known:
        raise CheckpointError(f"{folder} has no weights '{weights}'; it has: {', '.join(known)}")
    return known[weights]
