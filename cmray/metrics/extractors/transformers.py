"""Features of CLIP and of DINOv2, from the files that were published."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import gelu

from cmray.core.errors import DataError
from cmray.metrics.extractors.base import Extractor, Outputs, extractors
from cmray.metrics.extractors.published import PublishedConfig, images_at_a_time, is_scripted, load_program
from cmray.metrics.extractors.vit import Shape, VisionTransformer, quick_gelu
from cmray.metrics.resize import as_rgb, pillow
from cmray.metrics.weights_files import WeightsFile, cache_folder, fill, torch_cache

SIDE = 224

CLIP_B32 = Shape(768, 12, 12, patch=32, grid=7, eps=1e-5, act=quick_gelu, scaled=False, first_norm=True, project=512)
DINO_B14 = Shape(768, 12, 12, patch=14, grid=37, eps=1e-6, act=gelu, scaled=True, first_norm=False)
DINO_L14 = Shape(1024, 24, 16, patch=14, grid=37, eps=1e-6, act=gelu, scaled=True, first_norm=False)

#: names in the files -> ours; `#` is the number of a block
CLIP_NAMES = {
    "visual.conv1.weight": "patches.weight",
    "visual.class_embedding": "token",
    "visual.positional_embedding": "positions",
    "visual.ln_pre.": "before.",
    "visual.ln_post.": "after.",
    "visual.proj": "projection",
    "visual.transformer.resblocks.#.ln_1.": "blocks.#.norm1.",
    "visual.transformer.resblocks.#.ln_2.": "blocks.#.norm2.",
    "visual.transformer.resblocks.#.attn.in_proj_": "blocks.#.qkv.",
    "visual.transformer.resblocks.#.attn.out_proj.": "blocks.#.out.",
    "visual.transformer.resblocks.#.mlp.c_fc.": "blocks.#.fc1.",
    "visual.transformer.resblocks.#.mlp.c_proj.": "blocks.#.fc2.",
}
DINO_NAMES = {
    "patch_embed.proj.": "patches.",
    "cls_token": "token",
    "pos_embed": "positions",
    "norm.": "after.",
    "blocks.#.norm1.": "blocks.#.norm1.",
    "blocks.#.norm2.": "blocks.#.norm2.",
    "blocks.#.attn.qkv.": "blocks.#.qkv.",
    "blocks.#.attn.proj.": "blocks.#.out.",
    "blocks.#.mlp.fc1.": "blocks.#.fc1.",
    "blocks.#.mlp.fc2.": "blocks.#.fc2.",
    "blocks.#.ls1.gamma": "blocks.#.scale1",
    "blocks.#.ls2.gamma": "blocks.#.scale2",
}


def renamed(state: dict[str, Any], names: dict[str, str], depth: int) -> dict[str, Any]:
    """The tensors of a published file under our names; others are left out."""
    out = {}
    for theirs, ours in names.items():
        for i in range(depth) if "#" in theirs else (0,):
            begin, put = theirs.replace("#", str(i)), ours.replace("#", str(i))
            whole = not begin.endswith((".", "_"))
            for key, value in state.items():
                if key == begin or (not whole and key.startswith(begin) and "." not in key[len(begin) :]):
                    out[put + key[len(begin) :]] = value
    for key in ("token", "positions"):  # DINOv2 keeps axes of length 1
        if isinstance(out.get(key), Tensor):
            out[key] = out[key].squeeze()
    return out


class TransformerExtractor(Extractor):
    """The class token for images of 224x224, made as Pillow makes them: bicubic, the middle, whole levels."""

    replicates = True
    resizer = "pillow"

    def __init__(self, config: _Transformer, network: Any, sha256: str, device: torch.device):
        super().__init__(device)
        self.name = config.name  # pyright: ignore[reportAttributeAccessIssue] - one class has three names
        self.network, self.sha256 = network, sha256
        self.dim = config.shape.project or config.shape.width
        self.part = images_at_a_time(device)
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (config.mean, config.std))

    def check(self, shape: Sequence[int]) -> None:
        self.check_rgb(shape)

    def describe(self, images: Tensor, wanted: frozenset[str]) -> Outputs:
        x = (as_rgb(pillow(images, SIDE)) / 255 - self._mean) / self._std
        features = self.network(x)
        if not isinstance(features, Tensor) or features.shape != (len(x), self.dim):
            found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise DataError(f"extractor '{self.name}': the file gives {found}, where [{len(x)}, {self.dim}] is needed")
        return Outputs(features.float())


class _Transformer(PublishedConfig):
    shape: ClassVar[Shape]
    names: ClassVar[dict[str, str]]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    def build(self, device: torch.device) -> TransformerExtractor:
        path, sha256 = self.found()
        return TransformerExtractor(self, self._network(path, device), sha256, device)

    def _network(self, path: Path, device: torch.device) -> Any:
        state = renamed(self._tensors(path), self.names, self.shape.depth)
        with torch.device("meta"):
            network = VisionTransformer(self.shape)
        network.to_empty(device=device)
        fill(network, state, f"extractor '{self.name}': {path} does not hold {self.file.name}: ")
        return network.eval().requires_grad_(False)

    def _tensors(self, path: Path) -> dict[str, Any]:
        return self.file.read_tensors(path)


def _clip_places() -> tuple[Path, ...]:
    return (cache_folder(), Path.home() / ".cache" / "clip")  # the second is where the package clip keeps it


def _dino_places() -> tuple[Path, ...]:
    return (cache_folder(), torch_cache())


def dino_file(user: str, letter: str, megabytes: int) -> WeightsFile:
    model = f"dinov2_vit{letter}14"
    source = f"https://dl.fbaipublicfiles.com/dinov2/{model}/{model}_pretrain.pth"
    return WeightsFile(f"extractor '{user}'", f"{model}_pretrain.pth", megabytes, source, "weights", _dino_places)


@extractors.register("clip")
class Clip(_Transformer):
    """Image features [B, 512] of CLIP ViT-B/32, as clean-fid's clip_vit_b_32, in float32 on every device."""

    file: ClassVar[WeightsFile] = WeightsFile(
        "extractor 'clip'",
        "ViT-B-32.pt",
        338,
        "https://openaipublic.azureedge.net/clip/models/"
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        "weights",
        _clip_places,
    )
    shape: ClassVar[Shape] = CLIP_B32
    names: ClassVar[dict[str, str]] = CLIP_NAMES
    mean: ClassVar[tuple[float, ...]] = (0.48145466, 0.4578275, 0.40821073)
    std: ClassVar[tuple[float, ...]] = (0.26862954, 0.26130258, 0.27577711)

    def _tensors(self, path: Path) -> dict[str, Any]:
        if not is_scripted(path):
            return super()._tensors(path)
        # published as a program in half precision for one kind of GPU: only its tensors are of use everywhere
        with warnings.catch_warnings(action="ignore"):
            return load_program(path, "extractor 'clip'", torch.device("cpu")).state_dict()


class _Dino(_Transformer):
    names: ClassVar[dict[str, str]] = DINO_NAMES
    mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)

    def _network(self, path: Path, device: torch.device) -> Any:
        if is_scripted(path):
            return load_program(path, f"extractor '{self.name}'", device)
        return super()._network(path, device)


@extractors.register("dinov2-b")
class DinoB(_Dino):
    """The class token [B, 768] of DINOv2 ViT-B/14, from its weights or a TorchScript file of the network."""

    file: ClassVar[WeightsFile] = dino_file("dinov2-b", "b", 330)
    shape: ClassVar[Shape] = DINO_B14


@extractors.register("dinov2-l")
class DinoL(_Dino):
    """The class token [B, 1024] of DINOv2 ViT-L/14, from its weights or a TorchScript file of the network."""

    file: ClassVar[WeightsFile] = dino_file("dinov2-l", "l", 1161)
    shape: ClassVar[Shape] = DINO_L14
