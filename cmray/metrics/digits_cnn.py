"""The network behind the extractor 'digits', its weights file and the data it was measured on.

`analysis/train_digits_classifier.py` makes the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from cmray.core.errors import DataError

WEIGHTS = Path(__file__).parent / "weights" / "digits-cnn.safetensors"

#: The one key of the file's metadata. One key holding JSON, since safetensors writes several in random order
#: and the file's hash must not depend on that.
METADATA_KEY = "cmray"


class DigitsCNN(nn.Module):
    """Three convolutions, 64 features, 10 classes; 71,546 parameters.

    [B,1,8,8] -conv4/2-> [B,32,4,4] -conv3-> [B,32,4,4] -conv3/2-> [B,112,2,2] -linear-> [B,64] -linear->
    [B,10], SiLU after all but the last. The stride comes first because a perceptual distance in these maps is
    paid for at every training step: an 8x8 map of 32 channels nearly doubles its time.

    Args:
        norm: batch normalisation after each convolution, for training; `fused` folds it in, and only the
            folded network is measured and shipped.
    """

    dim = 64

    def __init__(self, norm: bool = False):
        super().__init__()
        layers = [(1, 32, 4, 2), (32, 32, 3, 1), (32, 112, 3, 2)]  # channels in and out, kernel, stride
        self.convs = nn.ModuleList([nn.Conv2d(i, o, k, stride=s, padding=1) for i, o, k, s in layers])
        self.norms = nn.ModuleList([nn.BatchNorm2d(o) if norm else nn.Identity() for _, o, _, _ in layers])
        self.hidden = nn.Linear(112 * 2 * 2, self.dim)
        self.head = nn.Linear(self.dim, 10)
        self.feature_scale = nn.Buffer(torch.ones(()))

    def maps(self, x: Tensor) -> list[Tensor]:
        """x float32 in [-1, 1] [B, 1, 8, 8] -> [B, 32, 4, 4], [B, 32, 4, 4], [B, 112, 2, 2]."""
        out = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
            out.append(x)
        return out

    def penultimate(self, x: Tensor) -> Tensor:
        """[B, 64], unscaled: what the last layer reads."""
        return F.silu(self.hidden(self.maps(x)[-1].flatten(1)))

    def embed(self, x: Tensor) -> Tensor:
        """[B, 64], scaled by one constant so that the covariance over all 1,797 digits has trace 100."""
        return self.penultimate(x) * self.feature_scale

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10]."""
        return self.head(self.penultimate(x))

    def fused(self) -> DigitsCNN:
        """The same function with the normalisation folded into the convolutions; eval mode, frozen."""
        out = DigitsCNN()
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            pair = cast(nn.Conv2d, conv).eval(), cast(nn.BatchNorm2d, norm).eval()
            out.convs[i] = nn.utils.fuse_conv_bn_eval(*pair)
        out.hidden.load_state_dict(self.hidden.state_dict())
        out.head.load_state_dict(self.head.state_dict())
        out.feature_scale.copy_(self.feature_scale)
        return out.eval().requires_grad_(False)


def load_digits_cnn(path: Path = WEIGHTS) -> tuple[DigitsCNN, str]:
    """The frozen network of a weights file and the file's sha256. Raises DataError when it cannot be read."""
    try:
        content = path.read_bytes()
        network = DigitsCNN()
        network.load_state_dict(load_tensors(content))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot read the weights of extractor 'digits' from {path}: {reason}") from error
    return network.eval().requires_grad_(False), hashlib.sha256(content).hexdigest()


def digits_metadata(path: Path = WEIGHTS) -> Mapping[str, Any]:
    """What the training script recorded: accuracy, n_test, split_seed, scale, versions, script."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[METADATA_KEY])


def digits_images() -> tuple[Tensor, Tensor]:
    """All digits in the dataset's order: uint8 [1797, 1, 8, 8] and int64 labels [1797]."""
    from cmray.datasets.digits import Digits  # extraction needs no dataset, only training and tests do
    from cmray.datasets.whole import load_whole

    dataset: Any = load_whole(Digits())
    return torch.from_numpy(dataset.images), torch.from_numpy(dataset.labels)


def held_out_split(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (train, test), 80 and 20 per cent, stratified by label."""
    from sklearn.model_selection import train_test_split

    index = np.arange(len(labels))
    train, test = train_test_split(index, test_size=0.2, stratify=labels.numpy(), random_state=seed)
    return torch.from_numpy(train), torch.from_numpy(test)
