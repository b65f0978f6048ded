"""Small networks in files, made by the tests of extractors: the forms that published ones have."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CPU = torch.device("cpu")


def pixels(count, channels, height, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, height, width), generator=g, dtype=torch.uint8)


class Mixed(nn.Module):
    """Two branches side by side, of which the first one is called conv."""

    def __init__(self, given: int):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(given, 12, 1), nn.ReLU())
        self.tower = nn.Sequential(nn.Conv2d(given, 12, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x)], 1)


class StandIn(nn.Module):
    """What the file of Inception does for its callers, with layers of a few channels."""

    def __init__(self, dim: int = 2048, middle: str = "mixed_6"):
        super().__init__()
        self.layers = nn.Sequential(
            OrderedDict(
                [
                    ("conv", nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())),
                    ("pool0", nn.MaxPool2d(3, 2)),
                    ("conv_1", nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.ReLU())),
                    ("mixed_5", nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.ReLU())),
                    (middle, Mixed(8)),
                    ("mixed_7", nn.Sequential(nn.Conv2d(24, dim, 1), nn.ReLU())),
                    ("pool2", nn.AdaptiveAvgPool2d(1)),
                ]
            )
        )
        self.output = nn.Linear(dim, 1008)
        self.half_pixel: float = 1.0

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        n, c, h, w = img.shape
        move_x = self.half_pixel * (1.0 / w - 1.0 / 299)
        move_y = self.half_pixel * (1.0 / h - 1.0 / 299)
        theta = torch.tensor([[1.0, 0.0, move_x], [0.0, 1.0, move_y]]).unsqueeze(0).repeat([n, 1, 1])
        grid = F.affine_grid(theta, [n, c, 299, 299], align_corners=False)
        x = F.grid_sample(img.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128).view(n, -1)
        if return_features:
            return features
        logits = F.linear(features, self.output.weight)
        return torch.softmax(logits if no_output_bias else logits + self.output.bias, 1)


def randomised(network, seed=0, gain=1.0):
    """Weights with which activations keep an ordinary size at every depth."""
    torch.manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data *= gain
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.2)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.8, 1.2)
            nn.init.normal_(layer.bias, std=0.1)
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.8, 1.2)
    return network.eval().requires_grad_(False)


def scripted(network, path):
    torch.jit.script(network).save(str(path))
    return path
