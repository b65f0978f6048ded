"""The ways people feed image datasets without cmray, each as its users would write it.

Every peer is an endless iterator over the sizes of shuffled batches that were made float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

#: rows that Ray Data's own shuffle keeps at hand; larger buffers shuffle better and are slower
SHUFFLE_ROWS = 4_096
INSTALL = "pip install datasets"


def write_image_folder(files: Sequence[Path], folder: Path, count: int | None = None) -> None:
    """Writes the images of Parquet files as they are encoded, one folder for each class."""
    row = 0
    for file in files:
        table = pq.read_table(file, columns=["image", "label"])
        for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
            place = folder / f"{label:04d}"
            place.mkdir(parents=True, exist_ok=True)
            ending = "png" if image["bytes"].startswith(b"\x89PNG") else "jpg"
            (place / f"{row:07d}.{ending}").write_bytes(image["bytes"])
            row += 1
            if row == count:
                return


def _pixels(images: torch.Tensor) -> torch.Tensor:
    return images.float().div_(127.5).sub_(1)


def _endless(loader: Any, take: Callable[[Any], torch.Tensor]) -> Iterator[int]:
    while True:
        for batch in loader:
            yield len(take(batch))


def image_folder(folder: Path, channels: int, workers: int, batch: int) -> Iterator[int]:
    """torchvision's ImageFolder in torch's DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.ToTensor(), transforms.Normalize((0.5,) * channels, (0.5,) * channels)]
    if channels == 1:
        steps.insert(0, transforms.Grayscale())
    data = ImageFolder(str(folder), transforms.Compose(steps))
    loader = DataLoader(data, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return _endless(loader, lambda b: b[0])


def hugging_face(files: Sequence[Path], cache: Path, way: str, workers: int, batch: int) -> Iterator[int]:
    """Hugging Face `datasets` over the Parquet files.

    Args:
        way: "torch" for its own torch format, "transform" for a function that decodes each batch,
            "iter" for its torch format in batches of its own, which knows no workers.

    Raises:
        ImportError: `datasets` is not installed.
    """
    from datasets import Dataset, Image, disable_progress_bars  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader
    from torchvision.transforms.functional import pil_to_tensor

    disable_progress_bars()
    data: Any = Dataset.from_parquet([str(f) for f in files], cache_dir=str(cache), columns=["image", "label"])
    data = data.cast_column("image", Image())
    if way == "iter":
        return _hugging_face_iter(data, batch)
    if way == "torch":
        data, take = data.with_format("torch"), lambda b: _pixels(b["image"])
    else:

        def decode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {"image": [_pixels(pil_to_tensor(i)) for i in rows["image"]], "label": rows["label"]}

        data, take = data.with_transform(decode), lambda b: b["image"]
    loader = DataLoader(data, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return _endless(loader, take)


def _hugging_face_iter(data: Any, batch: int) -> Iterator[int]:
    epoch = 0
    while True:
        shuffled = data.shuffle(seed=epoch, keep_in_memory=True).with_format("torch")
        for rows in shuffled.iter(batch_size=batch):
            yield len(_pixels(rows["image"]))
        epoch += 1


def ray_data(shards: Sequence[str], batch: int, kind: str) -> Iterator[int]:
    """Plain Ray Data over cmray's shards, whose pixels are already decoded.

    Args:
        kind: "stream"; "materialize" to hold all blocks in the object store; "unshuffled" for the same without
            shuffling rows.
    """
    import ray.data

    data = ray.data.read_parquet(list(shards))
    if kind != "stream":
        data = data.materialize()
    rows = None if kind == "unshuffled" else SHUFFLE_ROWS
    while True:
        batches = data.iter_torch_batches(batch_size=batch, local_shuffle_buffer_size=rows)
        for each in batches:
            yield len(_pixels(each["image"]))
