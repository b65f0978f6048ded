"""A classifier trained on the dataset that is measured, whose features make a distance for images of any kind.

Inception was made for photographs of 299x299. On small images of something else, the features of a classifier of that
something tell good samples from bad ones, as those of `digits_cnn` do for 8x8 digits.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from cmray.core.errors import DataError, MissingWeightsError
from cmray.core.rng import derive_seed, torch_generator
from cmray.metrics.digits_cnn import METADATA_KEY, held_out_split
from cmray.metrics.weights_files import fill, reason_of

KIND = "cmray classifier for features"
DIM = 64
#: pixels a side that are taken
SMALLEST, LARGEST = 8, 64
#: of the dataset's features, as of the extractor 'digits'
TRACE = 100.0
#: each class is split into training and held-out images
LEAST_OF_A_CLASS = 5


class TrainedCNN(nn.Module):
    """Convolutions that halve the image down to 4 pixels a side or less, 64 features, and the classes.

    [B, C, H, W] -> k maps of 32, 64, 96, ... channels (at most 128) -> [B, 64] -> [B, classes]. Each map is made by
    a convolution of stride 2 and one of stride 1, both with batch normalisation and SiLU.

    Args:
        shape: (C, H, W) of the images.
        classes: how many there are.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        channels, *sides = shape
        self.stages = nn.ModuleList()
        self.sides: list[tuple[int, int]] = []
        while max(sides) > 4:
            sides = [(side + 1) // 2 for side in sides]
            width = min(32 * (len(self.stages) + 1), 128)
            self.stages.append(_stage(channels, width))
            self.sides.append((sides[0], sides[1]))
            channels = width
        self.hidden = nn.Linear(channels * sides[0] * sides[1], DIM)
        self.head = nn.Linear(DIM, classes)
        self.feature_scale = nn.Buffer(torch.ones(()))

    def maps(self, x: Tensor) -> list[Tensor]:
        """x float32 in [-1, 1] [B, C, H, W] -> one map per stage, shallow to deep."""
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return out

    def penultimate(self, deepest: Tensor) -> Tensor:
        """The last map -> [B, 64], unscaled: what the last layer reads."""
        return F.silu(self.hidden(deepest.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes]."""
        return self.head(self.penultimate(self.maps(x)[-1]))


def _stage(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for given, stride in ((channels, 2), (width, 1)):
        layers += [nn.Conv2d(given, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Recipe:
    """How the classifier is trained. The same recipe and data give the same file on one kind of processor."""

    epochs: int = 20
    seed: int = 0
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05


def check_trainable(shape: tuple[int, int, int], labels: Tensor | None, classes: tuple[str, ...], what: str) -> None:
    """Raises DataError unless a classifier can be trained on such images. `what` names the dataset."""
    channels, *sides = shape
    if channels not in (1, 3) or not all(SMALLEST <= side <= LARGEST for side in sides):
        raise DataError(
            f"{what} has images of {'x'.join(map(str, shape))} (C x H x W); features are trained on 1 or 3 channels "
            f"and {SMALLEST} to {LARGEST} pixels a side"
        )
    if labels is None or not classes:
        raise DataError(f"{what} has no labels; features are trained on labelled images")
    counts = labels.bincount(minlength=len(classes))
    there = counts > 0
    if int(there.sum()) < 2:
        raise DataError(f"{what} has images of {int(there.sum())} class; a classifier needs at least 2 classes")
    few = [f"'{classes[i]}' has {int(counts[i])}" for i in torch.nonzero(there & (counts < LEAST_OF_A_CLASS)).flatten()]
    if few:
        raise DataError(f"{what}: class {few[0]} images; each class needs at least {LEAST_OF_A_CLASS}, or none")


def train_features(
    images: Tensor,
    labels: Tensor,
    classes: int,
    recipe: Recipe,
    device: torch.device,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> tuple[TrainedCNN, dict[str, Any]]:
    """Trains on four fifths of the images and counts on the others; nothing is chosen by those.

    Args:
        images: uint8 [N, C, H, W], which `check_trainable` has passed; labels int64 [N].
        progress: told (step, steps, loss) after every step.

    Returns:
        The frozen network with its feature scale, and what was measured.
    """
    train, test = held_out_split(labels, recipe.seed)
    with _deterministic(derive_seed("trained features", recipe.seed), device):
        network = TrainedCNN(cast(tuple[int, int, int], tuple(images.shape[1:])), classes).to(device)
        _fit(network, images[train], labels[train], recipe, progress)
        network.eval().requires_grad_(False)
        correct = sum(
            int((network(_as_input(images[i], device)).argmax(1).cpu() == labels[i]).sum()) for i in test.split(512)
        )
        found = [network.penultimate(network.maps(_as_input(some, device))[-1]).cpu() for some in images.split(512)]
        trace = float(torch.cat(found).double().var(0, correction=1).sum())
        if not trace > 0:
            raise DataError("the features are the same for all images: the classifier has not learned; train longer")
        network.feature_scale.fill_((TRACE / trace) ** 0.5)
    return network.cpu(), {
        "accuracy": correct / len(test),
        "n_correct": correct,
        "n_test": len(test),
        "split": "stratified 80/20, sklearn.model_selection.train_test_split",
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "trace": TRACE,
        "scale": float(network.feature_scale),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def _fit(
    network: TrainedCNN, images: Tensor, labels: Tensor, recipe: Recipe, progress: Callable[[int, int, float], None]
) -> None:
    device = network.feature_scale.device
    generator = torch_generator("cpu", "trained features", recipe.seed)
    size = min(recipe.batch, len(images))
    steps = recipe.epochs * (len(images) // size)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=max(steps, 2))
    step = 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for index in order[: len(images) // size * size].split(size):
            x = _as_input(moved(images[index], generator), device)
            loss = F.cross_entropy(network(x), labels[index].to(device), label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            progress(step, steps, float(loss.detach()))


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each of uint8 images [B, C, H, W] moved by up to an eighth of a side each way; the border is repeated."""
    _, _, height, width = images.shape
    reach = max(1, min(height, width) // 8)
    offset = torch.randint(-reach, reach + 1, (2, len(images)), generator=generator)
    rows = (torch.arange(height) + offset[0][:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) + offset[1][:, None]).clamp(0, width - 1)
    taken = images[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return taken.permute(0, 3, 1, 2)


def _as_input(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).float() / 127.5 - 1


@contextmanager
def _deterministic(seed: int, device: torch.device) -> Iterator[None]:
    """The same operations in the same order each time, from a seed; as it was afterwards."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's matrix products refuse
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


def save_features(network: TrainedCNN, record: Mapping[str, Any], path: Path) -> None:
    """Writes the file, whole or not at all. Its metadata is `record` as JSON. Raises DataError."""
    told = json.dumps({"kind": KIND, **record}, sort_keys=True)
    half = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            state = {name: value.contiguous() for name, value in network.state_dict().items()}
            half.write_bytes(save_tensors(state, metadata={METADATA_KEY: told}))
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason_of(error)}") from None


def load_features(path: Path) -> tuple[TrainedCNN, dict[str, Any]]:
    """The frozen network of a file that `cmray features train` wrote, and its record. Raises DataError."""
    try:
        content = path.read_bytes()
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
        state = load_tensors(content)
    except FileNotFoundError as error:
        raise MissingWeightsError(
            f"extractor 'trained' cannot read {path}: {reason_of(error)}; `cmray features train DATA --out {path}` "
            f"makes it",
            str(path),
            trained=True,
        ) from None
    except OSError as error:
        raise DataError(f"extractor 'trained' cannot read {path}: {reason_of(error)}") from None
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{path} is not a file of `cmray features train`, or is damaged: {reason_of(error)}") from None
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise DataError(f"{path} is a safetensors file, but none of `cmray features train`")
    try:
        data = record["dataset"]
        channels, height, width = (int(n) for n in data["shape"])
        with torch.device("meta"):
            network = TrainedCNN((channels, height, width), len(data["classes"]))
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: its record does not say which images it was trained on") from None
    network.to_empty(device="cpu")
    fill(network, state, f"{path} does not hold the network that its record names: ")
    return network.eval().requires_grad_(False), record
