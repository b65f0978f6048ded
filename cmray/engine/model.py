"""A trained network, ready to sample from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cmray.config.checkpoint_facts import CheckpointFacts, ema_file, read_checkpoint_facts
from cmray.config.run import RunConfig
from cmray.core.errors import CheckpointError, CmrayError
from cmray.core.grids import karras_sigmas
from cmray.core.precond import Denoise, Denoiser
from cmray.core.rng import SampleNoise
from cmray.engine.checkpoint import load_part
from cmray.engine.remote import fetch_checkpoint
from cmray.objectives import Kind
from cmray.samplers import Moment, Sampler, samplers

#: images that go through the network together unless a call says otherwise; an image's last bits depend on it
SAMPLE_BLOCK = 64

#: a registered sampler, or a mapping of its "name" and options
SamplerName = str | Mapping[str, Any]


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

    def sampler(self, nfe: int, times: Sequence[float] | None = None, name: SamplerName | None = None) -> Sampler:
        return make_sampler(self.run, nfe, times, name)

    def images(
        self, sampler: Sampler, seeds: Sequence[int], labels: Tensor | None = None, block: int = SAMPLE_BLOCK
    ) -> Tensor:
        """Images in [-1, 1], float32 [N,C,H,W] on the CPU, one per seed.

        The network always sees whole blocks (the last one is filled up and cut), so that an image has the same bits
        whatever else is asked for in the same call.

        Args:
            labels: int64 [N] for class-conditional models; by default each seed draws its own.
        """
        out = []
        for start in range(0, len(seeds), block):
            chunk = list(seeds[start : start + block])
            given = None if labels is None else labels[start : start + block]
            out.append(self._block(sampler, chunk, given, block)[: len(chunk)].cpu())
        return torch.cat(out)

    def trajectory(
        self, sampler: Sampler, seeds: Sequence[int], labels: Tensor | None = None
    ) -> tuple[list[Moment], Tensor]:
        """The way to the same images that `images` gives, at most SAMPLE_BLOCK of them, and the images; on the CPU.

        Args:
            labels: as in `images`.
        """
        if len(seeds) > SAMPLE_BLOCK:
            raise ValueError(f"{len(seeds)} seeds are given; a trajectory is of {SAMPLE_BLOCK} images at most")
        n, moments = len(seeds), []

        def watch(moment: Moment) -> None:
            moments.append(Moment(moment.sigma, moment.noisy[:n].cpu(), moment.said[:n].cpu()))

        return moments, self._block(sampler, list(seeds), labels, SAMPLE_BLOCK, watch)[:n].cpu()

    def _block(
        self,
        sampler: Sampler,
        seeds: list[int],
        labels: Tensor | None,
        block: int,
        watch: Callable[[Moment], None] | None = None,
    ) -> Tensor:
        """Images of a block that is filled up with the last seed, on the device."""
        more, label = block - len(seeds), None
        if labels is not None:
            label = torch.cat([labels, labels[-1:].expand(more)]).to(self.device)
        filled = seeds + [seeds[-1]] * more
        return sample_seeds(self.denoise, sampler, filled, self.shape, self.num_classes, self.device, label, watch)


def sample_seeds(
    denoise: Denoise,
    sampler: Sampler,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    num_classes: int,
    device: torch.device,
    label: Tensor | None = None,
    watch: Callable[[Moment], None] | None = None,
) -> Tensor:
    """One batch of images on `device`, one per seed. A class-conditional model without `label` draws them by seed."""
    noise = SampleNoise(seeds, shape, device)
    if num_classes and label is None:
        label = noise.integers(num_classes)
    return sampler.sample(denoise, noise, label, watch)


def make_sampler(
    run: RunConfig, nfe: int, times: Sequence[float] | None = None, name: SamplerName | None = None
) -> Sampler:
    """The sampler a run's model is used with at a budget of network evaluations.

    Args:
        nfe: 1 is one step from sigma_max. A consistency model takes nfe multistep evaluations; a denoiser takes
            (nfe + 1) / 2 Heun steps; a progressively distilled one takes nfe Euler steps.
        times: noise levels of a consistency model, descending; by default nfe of them spread over the grid.
        name: another sampler, or a mapping of its name and options. A denoiser's takes as many levels as make nfe.

    Raises:
        CmrayError: a budget below 1 or one that the sampler cannot take; times for a denoiser, out of range or not
            descending; a sampler that is unknown, for the other kind of model, or refuses its options.
    """
    if nfe < 1:
        raise CmrayError(f"nfe is {nfe}; a sample takes at least 1 network evaluation")
    noise, kind = run.noise, run.objective.kind
    if times is not None:
        return _at_times(run, nfe, times, name)
    if kind == "denoiser" and name is None and nfe % 2 == 0:
        raise CmrayError(
            f"nfe {nfe} is even; a denoiser is sampled with Heun steps, n of which take 2 n - 1 evaluations"
        )
    own = run.objective.own_nfe
    if own is not None and name is None and nfe != own:
        raise CmrayError(
            f"nfe is {nfe}, but this model was distilled to {own} step{'s' * (own > 1)}; for others train with another "
            f"objective.num_sigmas.end"
        )
    spec = _default_spec(kind, nfe) if name is None else _sampler_spec(name, kind != "consistency", nfe)
    if kind == "consistency":
        sigmas = karras_sigmas(nfe + 1, noise.sigma_min, noise.sigma_max, noise.rho).tolist()[1:]
    elif (count := 1 if spec["name"] == "one-step" else _num_levels(spec, nfe, run)) > 1:
        sigmas = karras_sigmas(count, noise.sigma_min, noise.sigma_max, noise.rho).tolist()
    else:
        sigmas = [noise.sigma_max]
    return _parsed(spec, sigmas, run)


def _default_spec(kind: Kind, nfe: int) -> dict[str, Any]:
    if kind == "few-step":
        return {"name": "progressive-distillation"}
    return {"name": "one-step" if nfe == 1 else "edm-heun" if kind == "denoiser" else "multistep"}


def _at_times(run: RunConfig, nfe: int, times: Sequence[float], name: SamplerName | None) -> Sampler:
    """A consistency model's sampler at given noise levels."""
    noise, kind = run.noise, run.objective.kind
    if kind != "consistency":
        raise CmrayError(f"times are for consistency models; this model is a {kind} model, use --nfe")
    if len(times) != nfe:
        raise CmrayError(f"nfe is {nfe}, but {len(times)} times are given")
    if any(a <= b for a, b in itertools.pairwise(times)):
        raise CmrayError(f"times must descend, found {list(times)}")
    if not all(noise.sigma_min < t <= noise.sigma_max for t in times):
        raise CmrayError(
            f"times must be above sigma_min {noise.sigma_min} and at most sigma_max {noise.sigma_max}, "
            f"found {list(times)}"
        )
    spec = _default_spec(kind, nfe) if name is None else _sampler_spec(name, False, nfe)
    return _parsed(spec, sorted(float(t) for t in times), run)


def _sampler_spec(name: SamplerName, denoiser: bool, nfe: int) -> dict[str, Any]:
    """The sampler that was asked for by name, if it is one for this kind of model."""
    spec = {"name": name} if isinstance(name, str) else dict(name) if isinstance(name, Mapping) else {}
    asked = spec.get("name")
    if not isinstance(asked, str):
        raise CmrayError(f"a sampler is a name, or a mapping with 'name' and its options; found {name!r}")
    if samplers.get(asked).of_consistency == denoiser:
        kinds = ("a denoiser", "consistency models") if denoiser else ("a consistency model", "denoisers")
        usable = [n for n, cls in samplers.classes().items() if cls.of_consistency != denoiser]
        raise CmrayError(f"sampler {asked} is for {kinds[1]}; this model is {kinds[0]}, use: {', '.join(usable)}")
    for key in ("sigmas", "sigma_min"):
        if key in spec:
            raise CmrayError(f"sampler {asked}: {key} follows from the model and its budget; leave it out")
    if asked == "one-step" and nfe > 1:
        raise CmrayError(f"sampler one-step takes 1 network evaluation, not {nfe}; multistep takes any number")
    return spec


def _num_levels(spec: dict[str, Any], nfe: int, run: RunConfig) -> int:
    """How many noise levels of a denoiser's sampler make a budget."""
    probe = _parsed(spec, [run.noise.sigma_min, run.noise.sigma_max], run)
    count = probe.num_levels(nfe)
    if count is None:
        near = [n for n in range(max(1, nfe - probe.nfe_step), nfe + probe.nfe_step + 1) if probe.num_levels(n)]
        takes = [n for n in range(1, 4 * probe.nfe_step + 1) if probe.num_levels(n)][:3]
        raise CmrayError(
            f"sampler {probe.title} cannot take nfe {nfe}: it takes {', '.join(map(str, takes))} and so on; "
            f"nearest: {' or '.join(map(str, near))}"
        )
    return count


def _parsed(spec: dict[str, Any], sigmas: Sequence[float], run: RunConfig) -> Sampler:
    if spec["name"] == "multistep":
        spec = {**spec, "sigma_min": run.noise.sigma_min if run.objective.precond == "boundary" else 0.0}
    try:
        return samplers.parse({**spec, "sigmas": tuple(sigmas)})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or first.get("ctx", {}).get("key", "")
        text = " ".join(part for part in (where, first["msg"].removeprefix("Value error, ")) if part)
        raise CmrayError(f"sampler {spec['name']}: {text}") from None


def load_model(folder: Path, device: torch.device, weights: str | None = None) -> Model:
    """The network of a checkpoint.

    Args:
        weights: "student" or "ema RATE"; by default the first EMA.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or has no such weights.
    """
    fetch_checkpoint(folder)
    facts = read_checkpoint_facts(folder)
    run = facts.run
    file = weights_file(facts, weights, folder)
    net = run.net.build(facts.shape, facts.num_classes)
    tensors = load_part(folder, file, facts.files[file])
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder} does not hold the network its manifest names: {str(error).splitlines()[0]}"
        ) from None
    net = net.to(device).eval().requires_grad_(False)
    if device.type == "cpu":  # convolutions then take and give pixels with all their channels together, as they compute
        net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    shown = "student" if file.startswith("student") else f"ema {file.removeprefix('ema-').removesuffix('.safetensors')}"
    return Model(
        net, Denoiser(net, run.precond()), run, facts.shape, facts.num_classes, shown, facts.files[file], device
    )


def weights_file(facts: CheckpointFacts, weights: str | None, folder: Path) -> str:
    """The part of a checkpoint that holds "student" or "ema RATE", or the first EMA. Raises CheckpointError."""
    if weights is None:
        return facts.weights_file
    named = {"student": "student.safetensors", **{f"ema {r}": ema_file(r) for r in facts.run.train.ema}}
    known = {name: file for name, file in named.items() if file in facts.files}  # imported ones have the EMA alone
    if weights not in known:
        raise CheckpointError(f"{folder} has no weights '{weights}'; it has: {', '.join(known)}")
    return known[weights]
