"""Features of a classifier that the user trained on the dataset that is measured: `cmray features train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cmray.core.errors import DataError
from cmray.metrics.extractors.base import Extractor, Outputs, extractors, size_text
from cmray.metrics.extractors.digits import SPATIAL_CHANNELS
from cmray.metrics.extractors.published import FileConfig
from cmray.metrics.trained import TrainedCNN, load_features


class TrainedExtractor(Extractor):
    """Penultimate features [B, 64], probabilities of the dataset's classes, and the maps of `TrainedCNN`.

    The spatial features are the first 7 channels of the map in the middle.
    """

    name: ClassVar[str] = "trained"
    outputs = frozenset({"features", "probabilities", "spatial"})

    def __init__(self, network: TrainedCNN, record: Mapping[str, Any], sha256: str, device: torch.device | str):
        super().__init__(device)
        self.network, self.record, self.sha256 = network.to(self.device), record, sha256
        self.shape = tuple(int(n) for n in record["dataset"]["shape"])
        self.dim, self.classes = network.head.in_features, network.head.out_features
        self._middle = (len(network.stages) - 1) // 2
        height, width = network.sides[self._middle]
        self.spatial_dim = SPATIAL_CHANNELS * height * width

    def check(self, shape: Sequence[int]) -> None:
        if tuple(int(n) for n in shape) != self.shape:
            raise DataError(
                f"extractor 'trained' takes images of {size_text(self.shape)} (C x H x W), on which it was trained; "
                f"these are {size_text(shape)}"
            )

    def describe(self, images: Tensor, wanted: frozenset[str]) -> Outputs:
        maps = self.maps(images.float() / 127.5 - 1)
        hidden = self.network.penultimate(maps[-1])
        return Outputs(
            hidden * self.network.feature_scale,
            self.network.head(hidden).softmax(1) if "probabilities" in wanted else None,
            maps[self._middle][:, :SPATIAL_CHANNELS].flatten(1) if "spatial" in wanted else None,
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        return self.network.maps(x)


@extractors.register("trained")
class Trained(FileConfig):
    """A classifier made by `cmray features train DATA --out FILE`."""

    made_by: ClassVar[str] = "made by `cmray features train DATA --out FILE`"

    def build(self, device: torch.device) -> TrainedExtractor:
        path, content = self.found()
        network, record = load_features(path)
        assert content is not None
        return TrainedExtractor(network, record, content, device)
