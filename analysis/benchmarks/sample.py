"""What sampling costs beside the network, and beside diffusers' ConsistencyModelPipeline with the same weights.

    python analysis/benchmarks/sample.py                            # 2 threads
    python analysis/benchmarks/sample.py --threads 1
    python analysis/benchmarks/sample.py --images 16 --block 8 --repeats 1 --memory 16 32     # does it run?

A U-Net of 5.5 million parameters with random weights draws 32x32 colour images in one step, in blocks. It is exported
by `cmray export --format diffusers`, so the pipeline has the same weights; both are given the same noise first, and
must give the same images. Then cmray (`cmray.load(...).sample`, from seeds to uint8), the pipeline (from a generator to
float arrays, its cheapest output) and the bare network (on noise that is there) take turns; medians are shown. Last,
`cmray sample --out FILE.npz` runs as a command for two numbers of images, and its highest memory is shown.

The targets: 1.3 times the pipeline's images per second on a CPU, at most 3% outside the network, memory that does not
grow with the number of images.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import ConsistencyModelPipeline

import cmray
from cmray.config.checkpoint_facts import CheckpointFacts, ema_file
from cmray.config.run import RunConfig
from cmray.core.rng import SampleNoise
from cmray.engine.checkpoint import save_checkpoint

SHAPE = (3, 32, 32)
NET = {"name": "adm", "channels": 64, "multipliers": [1, 2, 2], "blocks": 1, "attention_resolutions": [16]}
#: the largest difference of two images in [-1, 1] that are the same up to rounding
CLOSE = 1e-4


def write_checkpoint(folder: Path) -> Path:
    """A consistency model with random weights, none of which are zero."""
    run = RunConfig.model_validate({
        "data": {"path": "data/cifar10"}, "net": NET, "noise": {"sigma_data": 0.5}, "objective": {"name": "ct"},
        "train": {"steps": 1, "batch_size": 1, "ema": [0.99]},
    })  # fmt: skip
    torch.manual_seed(0)
    state = run.net.build(SHAPE, 0).state_dict()
    for tensor in state.values():
        if tensor.is_floating_point() and not tensor.any():
            tensor.normal_(std=0.05)
    facts = CheckpointFacts(
        step=1, nimg=1, seconds=0.0, shape=SHAPE, num_classes=0, run_config=run.model_dump(mode="json"),
        files={}, scalars={},
    )  # fmt: skip
    return save_checkpoint(folder, {"student.safetensors": state, ema_file(0.99): state}, facts, keep=1)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "cmray", *map(str, words)]


def peak_memory(words: list[str], threads: int) -> float:
    """MiB of a command at its highest."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed: {done.stderr[-2000:]}")
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--block", type=int, default=64, help="images that go through the network together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=int, nargs=2, default=[256, 2048], help="two numbers of images")
    args = parser.parse_args()
    if args.images % args.block:
        parser.error(f"--images {args.images} is no multiple of --block {args.block}")
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = write_checkpoint(folder)
        exported = command("export", checkpoint, "--format", "diffusers", "--out", folder / "pipeline")
        subprocess.run(exported, check=True, stdout=subprocess.DEVNULL)
        model = cmray.load(checkpoint)
        pipeline = ConsistencyModelPipeline.from_pretrained(folder / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        noise = SampleNoise(range(args.block), SHAPE).draw()

        def ours(count: int) -> object:
            return model.sample(count, nfe=1, block=args.block, uint8=True)

        def theirs(count: int) -> object:
            generator = torch.Generator().manual_seed(0)
            for _ in range(count // args.block):
                pipeline(batch_size=args.block, num_inference_steps=1, generator=generator, output_type="np")
            return None

        @torch.no_grad()
        def bare(count: int) -> object:
            level = torch.full((args.block,), model.sigma_max)
            for _ in range(count // args.block):
                model.model.net(noise, level, None)
            return None

        found = pipeline(batch_size=args.block, num_inference_steps=1, latents=noise, output_type="np").images
        apart = float(
            (torch.tensor(found) * 2 - 1 - model.sample(args.block, block=args.block).permute(0, 2, 3, 1)).abs().max()
        )
        assert apart < CLOSE, f"the same weights and noise give images that are {apart} apart"
        ways: dict[str, Callable[[int], object]] = {"cmray": ours, "diffusers": theirs, "network alone": bare}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way(args.block)
        for _ in range(args.repeats):
            for name, way in ways.items():
                began = time.perf_counter()
                way(args.images)
                seconds[name].append(time.perf_counter() - began)
        draw = lambda count: command("sample", checkpoint, "--nfe", 1, "--num", count, "--out", folder / f"{count}.npz")
        memory = [peak_memory(draw(count), args.threads) for count in args.memory]

    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "numpy")}
    parameters = sum(p.numel() for p in model.model.net.parameters())
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, Python {platform.python_version()}, "
          f"{', '.join(f'{k} {v}' for k, v in versions.items())}")  # fmt: skip
    print(f"{parameters / 1e6:.1f} million parameters, {args.images} images of 32x32 in blocks of {args.block}, 1 NFE; "
          f"images differ by at most {apart:.1e}\n")  # fmt: skip
    print("| | images/s | seconds, each |\n| :--- | ---: | :--- |")
    rates = {name: args.images / statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"| {name} | {rates[name]:.1f} | {', '.join(f'{value:.2f}' for value in values)} |")
    faster, outside = rates["cmray"] / rates["diffusers"], 1 - rates["cmray"] / rates["network alone"]
    print(f"\ncmray / diffusers: {faster:.2f} (target 1.3); outside the network: {outside:.1%} (target 3%)")
    print(f"highest memory: {', '.join(f'{m:,.0f} MiB for {n:,}' for n, m in zip(args.memory, memory, strict=True))}")
    facts = {"rates": rates, "seconds": seconds, "faster": faster, "outside": outside, "apart": apart,
             "memory_mib": dict(zip(map(str, args.memory), memory, strict=True)), "versions": versions}  # fmt: skip
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
