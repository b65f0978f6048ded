"""F1: raw networks F(x, c_noise, label), each in its own file beside its config."""

from cmray.nn.base import NetConfig, NetField, nets

__all__ = ["NetConfig", "NetField", "nets"]
