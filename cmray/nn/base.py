"""What a network config is, and the registry of networks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator
from torch import nn

from cmray.core.registry import ComponentConfig, Registry, component

nets: Registry[Any] = Registry("net", ["cmray.nn"])
NetField = component(nets, "the network that is trained")

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


Multipliers = Annotated[tuple[int, ...], Field(min_length=1, description="width of each level in channels")]
Blocks = Annotated[int, Field(ge=1, description="residual blocks per level; the way up has one more")]
AttentionResolutions = Annotated[
    tuple[int, ...],
    Field(
        description="feature heights in pixels with self-attention, beside the middle, which always has it; each is "
        "the height of a level, but the default's others are passed over"
    ),
]
Dropout = Annotated[float, Field(ge=0, lt=1, description="share of activations set to 0 while training")]


class AttentionUNetConfig(NetConfig):
    """Fields of the published U-Nets, whose levels each halve the sides and attend at heights given in pixels."""

    channels: int = Field(description="feature maps at full resolution, before the multipliers")
    multipliers: Multipliers
    blocks: Blocks
    attention_resolutions: AttentionResolutions
    dropout: Dropout
    activation_checkpointing: bool = Field(
        False,
        description="compute activations twice and keep few of them",
        json_schema_extra={"identity": False},  # not a bit of the result changes
    )

    @field_validator("multipliers", "attention_resolutions")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(v < 1 for v in value):
            raise ValueError(f"every entry must be at least 1, found {list(value)}")
        return value

    def widths(self) -> list[int]:
        """Channels of each level, full resolution first."""
        return [self.channels * m for m in self.multipliers]

    def heights(self, height: int) -> list[int]:
        """Pixels from top to bottom in each level for images `height` pixels high, full resolution first."""
        return [height >> level for level in range(len(self.multipliers))]

    def attention_levels(self, height: int) -> set[int]:
        """Levels with self-attention for images `height` pixels high; 0 is full resolution."""
        return {level for level, h in enumerate(self.heights(height)) if h in self.attention_resolutions}

    def check_attention(self, shape: Shape) -> None:
        """Raises ValueError for a height that no level has, unless it is one of the defaults, made for other images."""
        if self.attention_resolutions == type(self).model_fields["attention_resolutions"].default:
            return
        heights = self.heights(shape[1])
        for resolution in self.attention_resolutions:
            if resolution not in heights:
                raise ValueError(
                    f"attention_resolutions has {resolution}, which is the height of no level: for images of "
                    f"{shape[1]}x{shape[2]} they are {', '.join(map(str, heights))}; with [] only the middle attends"
                )
