"""What a network config is, and the registry of networks."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from cmray.core.registry import ComponentConfig, Registry, component

nets: Registry[Any] = Registry("net", ["cmray.nn"])
NetField = component(nets)

#: (channels, height, width)
Shape = tuple[int, int, int]


class NetConfig(ComponentConfig):
    """Options of one network. `build` makes a module F(x [B,C,H,W], c_noise [B], label [B] | None) -> [B,C,H,W]."""

    class_conditional: bool = Field(False, description="feed the dataset's class labels to the network")

    def architecture(self) -> dict[str, Any]:
        """What decides the parameters' names and shapes: all fields but those that only change how it is trained."""
        return self.model_dump(mode="json", exclude={"dropout", "activation_checkpointing"})

    def check(self, shape: Shape) -> None:
        """Raises ValueError with one sentence when images of `shape` do not fit the network."""

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        """A freshly initialised module for images of `shape`. `num_classes` is 0 when labels are not used."""
        raise TypeError(f"{type(self).__name__} does not define build")
