"""What measuring 1,000 images costs from pixels to a Fréchet distance: cmray, clean-fid and torch-fidelity, in one run.

    python analysis/benchmarks/evaluate.py                            # 2 cores
    python analysis/benchmarks/evaluate.py --threads 1
    python analysis/benchmarks/evaluate.py --images 8 --repeats 1 --threads 1 --same 2        # does it run?

All run an Inception-v3 with the same random weights, which this script makes, on the same 32x32 colour images, and
compare with the same statistics. cmray reads an .npz, as `cmray evaluate --images FILE.npz --parallel THREADS` does, on
threads of one process. clean-fid needs image files, whose writing
is not counted; it decodes and resizes in its own process or in one more, both are shown. torch-fidelity is handed the
images from memory and resizes as TensorFlow did; where it is not installed its row is left out.

Every measurement is made in processes of its own, bound to THREADS cores, that have loaded everything and measured a
few images before the clock runs; the peers take turns, and medians are shown. Memory is the highest sum over a peer's
processes, shared pages counted once, from its start to its end. Then the statistics of --same images are made by 1, 2
and 4 Ray actors; all must have the same bits.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from evaluate_peers import FILES, IMAGES, PLAIN, REFERENCE, SCRIPTED, WARM, WARM_COUNT, WAYS
from PIL import Image
from torch import nn
from torch.nn import functional as F

from cmray.cluster.connect import connected
from cmray.cluster.evaluate import EvaluatorPool
from cmray.config.metric import parse_metrics
from cmray.engine.images import find_images
from cmray.engine.sides import described, extractor_facts
from cmray.metrics.extractors.inception import PlainInception, patched_inception

SIDE, DIM = 32, 2048
#: statistics are the same where mean features differ by no more, as a share of the largest
CLOSE = 1e-4


class Published(nn.Module):
    """What the published TorchScript file does for its callers."""

    def __init__(self, layers: nn.Module, classes: int):
        super().__init__()
        self.layers, self.output = layers, nn.Linear(DIM, classes)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        n, c, h, w = img.shape
        theta = torch.tensor([[1.0, 0.0, 1.0 / w - 1.0 / 299], [0.0, 1.0, 1.0 / h - 1.0 / 299]])
        grid = F.affine_grid(theta.unsqueeze(0).repeat([n, 1, 1]), [n, c, 299, 299], align_corners=False)
        x = F.grid_sample(img.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128).reshape(n, 2048)
        if return_features:
            return features
        logits = F.linear(features, self.output.weight)
        return torch.softmax(logits if no_output_bias else logits + self.output.bias, 1)


def write_weights(folder: Path) -> None:
    """The same random network as clean-fid's TorchScript file and as torch-fidelity's state."""
    torch.manual_seed(0)
    network = patched_inception(1008).to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.8, 1.2)
            nn.init.normal_(layer.bias, std=0.1)
            layer.running_mean.normal_(0, 0.1)  # pyright: ignore[reportOptionalMemberAccess]
            layer.running_var.uniform_(0.8, 1.2)  # pyright: ignore[reportOptionalMemberAccess]
            layer.num_batches_tracked.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    network.eval().requires_grad_(False)
    torch.save(network.state_dict(), folder / PLAIN)
    steps = OrderedDict((name, getattr(network, name)) for name in PlainInception.STEPS)
    layers = torch.jit.trace(nn.Sequential(steps).eval(), torch.zeros(2, 3, 299, 299))
    published = Published(layers, 1008).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]
    torch.jit.script(published).save(str(folder / SCRIPTED))


def write_inputs(folder: Path, count: int) -> float:
    """Images of smooth random colours as archives and files, and statistics; returns seconds spent on writing files."""
    g = torch.Generator().manual_seed(1)
    coarse = torch.randint(256, (count + WARM_COUNT, 3, 8, 8), generator=g).float()
    images = F.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    seconds = 0.0
    for name, some in ((WARM, images[:WARM_COUNT]), (IMAGES, images[WARM_COUNT:])):
        np.savez(folder / name, arr_0=some)
        place = folder / FILES / Path(name).stem
        place.mkdir(parents=True)
        began = time.perf_counter()
        for i, image in enumerate(some):
            Image.fromarray(image).save(place / f"{i:05}.png")
        seconds = time.perf_counter() - began
    rng = np.random.default_rng(2)
    rows = 0.5 + rng.normal(size=(2 * DIM, DIM)) * np.logspace(0, -2, DIM)
    np.savez(folder / REFERENCE, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    return seconds


def pss(process: psutil.Process) -> int:
    """Bytes of a process and all below it, shared pages counted once."""
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for one in family:
        try:
            lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):  # it has just ended
            continue
    return total


def measured(name: str, folder: Path, threads: int, cpus: list[int]) -> dict[str, Any]:
    """One peer, once: what it says, and the highest memory seen."""
    command = [sys.executable, str(Path(__file__).with_name("evaluate_peers.py")), name, str(folder), str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    found: dict[str, Any] = {}
    peak = 0
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=said, env=environment, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    ) as child:  # fmt: skip
        watched, told = psutil.Process(child.pid), 0
        assert child.stdin is not None
        while child.poll() is None:
            peak = max(peak, pss(watched))
            said.seek(0)
            lines = said.read().splitlines()
            if lines and not told:
                child.stdin.write("go\n")
                child.stdin.flush()
                told = 1
            time.sleep(0.1)
        said.seek(0)
        lines = [line for line in said.read().splitlines() if line.startswith("{")]
    if child.returncode or len(lines) != 2:
        raise SystemExit(f"{name} ended with code {child.returncode} before it had measured")
    for line in lines:
        found |= json.loads(line)
    return {**found, "peak": peak}


def same_bits(folder: Path, count: int) -> str:
    """The hash of the statistics of some images, made by 1, 2 and 4 Ray actors. Raises where they differ."""
    (metric,) = parse_metrics([f"{{name: fd/inception-clean, extractor: {{weights: {folder / SCRIPTED}}}}}"])
    extractor = metric.extractor.model_dump(mode="json")
    with np.load(folder / IMAGES) as given:
        np.savez(folder / "some.npz", arr_0=given["arr_0"][:count])
    hashes = []
    with connected(None) as capacity:
        for actors in (1, 2, 4):
            images = find_images(str(folder / "some.npz"), folder, "images")
            pool = EvaluatorPool(actors, cpus=min(1.0, capacity.free_cpus / actors))
            facts = extractor_facts(extractor, images.shape)
            sample = described(images, extractor, facts, folder / f"actors-{actors}", pool, ("blocks",))
            pool.close()
            hashes.append(sample.statistics.sha256())
    assert len(set(hashes)) == 1, f"statistics of 1, 2 and 4 actors differ: {hashes}"
    return hashes[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="cores for each")
    parser.add_argument("--same", type=int, default=520, help="images whose statistics 1, 2 and 4 actors make; 0: none")
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    args = parser.parse_args()
    if args.images < 2 or args.same > args.images:
        parser.error(f"--images {args.images}: at least 2, and as many as --same {args.same}")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < args.threads:
        parser.error(f"--threads {args.threads}, but there are {len(cpus)} cores")
    names = [n for n in args.only if n != "torch-fidelity" or importlib.util.find_spec("torch_fidelity")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_weights(folder)
        writing = write_inputs(folder, args.images)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for turn in range(args.repeats):
            for name in names if turn % 2 == 0 else reversed(names):
                found[name].append(measured(name, folder, args.threads, cpus[: args.threads]))
        report(found, args, writing)
        if args.same:
            print(f"statistics of {args.same} images by 1, 2 and 4 actors: {same_bits(folder, args.same)[:16]}, equal")


def report(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace, writing: float) -> None:
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {args.threads} cores for each, load {load}")
    packages = ("torch", "numpy", "scipy", "clean-fid", "ray", *(["torch-fidelity"] * ("torch-fidelity" in found)))
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))
    print(
        f"{args.images:,} images of {SIDE}x{SIDE}, median of {args.repeats}; PNG files for clean-fid: {writing:.1f} s\n"
    )
    if "torch-fidelity" not in found and "torch-fidelity" in args.only:
        print("torch-fidelity is left out: it is not installed (pip install torch-fidelity)\n")
    print("| | seconds | images/s | peak memory, MiB | distance | time / cmray | memory / cmray |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: | ---: |")
    seconds = {name: statistics.median(one["seconds"] for one in runs) for name, runs in found.items()}
    peaks = {name: statistics.median(one["peak"] for one in runs) for name, runs in found.items()}
    for name, runs in found.items():
        ratios = [f"{of[name] / of['cmray']:.2f}" if "cmray" in of else "" for of in (seconds, peaks)]
        print(
            f"| {name} | {seconds[name]:.1f} | {args.images / seconds[name]:.1f} | {peaks[name] / 2**20:,.0f} "
            f"| {runs[-1]['value']:.6g} | {ratios[0]} | {ratios[1]} |"
        )
    print()
    if "cmray" in found:
        _targets(found, seconds, peaks)
    print(
        json.dumps({name: [{k: v for k, v in r.items() if k != "mean"} for r in runs] for name, runs in found.items()})
    )


def _targets(found: dict[str, list[dict[str, Any]]], seconds: dict[str, float], peaks: dict[str, float]) -> None:
    peers = [name for name in found if name != "cmray"]
    for what, of in (("time", seconds), ("memory", peaks)):
        for name in peers:
            met = "met" if of["cmray"] <= of[name] else "NOT met"
            print(f"{what}: no more than {name}: {met}")
    ours = np.array(found["cmray"][-1]["mean"])
    for name in peers:
        if name.startswith("clean-fid"):
            off = np.abs(np.array(found[name][-1]["mean"]) - ours).max() / np.abs(ours).max()
            print(f"mean features as {name}'s: {off:.0e} of the largest, {'met' if off < CLOSE else 'NOT met'}")


if __name__ == "__main__":
    main()
