"""What a format is that weights come from or go to, and the comparison of a file's tensors with a network's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from cmray.config.checkpoint_facts import CheckpointFacts, Origin
from cmray.config.run import RunConfig
from cmray.core.errors import CheckpointError
from cmray.core.registry import ComponentConfig, Registry
from cmray.engine.model import Model
from cmray.nn.base import NetConfig, Shape, nets
from cmray.tracking.records import Evaluation, Search

#: a tensor's sides
Sides = tuple[int, ...]

sources: Registry[Any] = Registry("source", ["cmray.exchange.incoming"])
targets: Registry[Any] = Registry("format", ["cmray.exchange.outgoing"])


@dataclass(frozen=True)
class Foreign:
    """Weights of a foreign file, as one of our networks has them.

    Args:
        state: by our names, float32, on the CPU.
        num_classes: 0 when unconditional.
        weights: the file they were read from.
        noise: fields of NoiseConfig that the file tells.
        objective: what the file says it was trained with, as in an experiment file; None where it does not tell.
        num_sigmas: points of the grid of noise levels, where the file tells.
        run: the whole run, where the file tells it.
        assumed: what nothing in the file tells and was taken to be so, as a sentence; "" for nothing.
        licence: of the weights, where the file tells it.
        origin: of weights that cmray exported and that were imported before.
        step, nimg: of weights that cmray trained: steps, and images seen.
    """

    net: NetConfig
    state: Mapping[str, Tensor]
    shape: Shape
    num_classes: int
    weights: Path
    noise: Mapping[str, Any] = field(default_factory=dict)
    objective: Any = None
    num_sigmas: int | None = None
    run: RunConfig | None = None
    assumed: str = ""
    licence: str | None = None
    origin: Origin | None = None
    step: int = 0
    nimg: int = 0


class Source(ComponentConfig):
    """A format that weights come from. `read` executes nothing of what the file says.

    Args:
        net: fields of the network that the file does not tell, or "name" and fields of another one.
        image_size: pixels a side, where the file does not tell.
    """

    net: dict[str, Any] = Field(default={}, description="fields of the network over those that are recognised")
    image_size: int | None = Field(default=None, ge=1, description="pixels a side")

    def read(self, path: Path) -> Foreign:
        """Raises CheckpointError, with one sentence, for a file that is something else or of another network."""
        raise TypeError(f"{type(self).__name__} does not define read")

    def config(self, recognised: Mapping[str, Any], shown: Path) -> Any:
        """The network's config: what was recognised, with `net` over it. Raises CheckpointError."""
        values = {**recognised, **self.net}
        if "name" in self.net and self.net["name"] != recognised.get("name"):
            values = dict(self.net)
        elif "heads" in self.net and "head_width" not in self.net:
            values.pop("head_width", None)  # one of the two says how attention is split
        try:
            return nets.parse(values)
        except ValidationError as error:
            raise CheckpointError(f"{shown}: {first_of(error, 'net')}; say what it is with --net") from None


@dataclass(frozen=True)
class Exported:
    """A model that goes out, with what is known of it. `licence` None: nobody said."""

    model: Model
    checkpoint: Path
    facts: CheckpointFacts
    name: str  # EXPERIMENT/TRIAL, or the checkpoint's folder
    evaluations: Sequence[Evaluation] = ()
    searches: Sequence[Search] = ()
    licence: str | None = None

    @property
    def run(self) -> RunConfig:
        return self.model.run


class Target(ComponentConfig):
    """A format that models go to."""

    def check(self, exported: Exported) -> None:
        """Raises CheckpointError, with one sentence, for a model that the format cannot express."""

    def write(self, exported: Exported, folder: Path) -> str:
        """Writes into the empty folder; returns the next useful command or a line of Python, without its folder.

        `{out}` in it stands for the folder.
        """
        raise TypeError(f"{type(self).__name__} does not define write")


@dataclass(frozen=True)
class Mismatch:
    """A key whose tensor is not what the network has; None where there is none."""

    key: str
    in_file: Sides | None
    in_network: Sides | None


class MismatchError(CheckpointError):
    """A file of another network than the one it was taken for."""

    def __init__(self, message: str, rows: Sequence[Mismatch]):
        super().__init__(message)
        self.rows = tuple(rows)


def meta_net(config: NetConfig, shape: Shape, num_classes: int, shown: Path) -> nn.Module:
    """The network without memory for its weights. Raises CheckpointError when images do not fit it."""
    try:
        with torch.device("meta"):
            return config.build(shape, num_classes)
    except ValueError as error:
        raise CheckpointError(f"{shown}: net: {error}; say what it is with --net") from None


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], shown: Path) -> None:
    """Raises MismatchError unless both have the same keys and shapes."""
    rows = []
    for key in sorted({*found, *expected}):
        sides = [tuple(side[key].shape) if key in side else None for side in (found, expected)]
        if sides[0] != sides[1]:
            rows.append(Mismatch(key, *sides))
    if not rows:
        return
    missing, extra = (sum(1 for r in rows if getattr(r, side) is None) for side in ("in_file", "in_network"))
    counts = {"missing": missing, "unexpected": extra, "of another shape": len(rows) - missing - extra}
    told = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    raise MismatchError(
        f"{shown} does not hold this network: of {len(expected)} tensors that it has, {told}, such as {rows[0].key}; "
        f"say what it is with --net",
        rows,
    )


def first_of(error: ValidationError, *above: str) -> str:
    """The first thing that is wrong, "net.heads: ...", below a field."""
    first = error.errors()[0]
    key = first.get("ctx", {}).get("key")
    where = [str(part) for part in (*above, *first["loc"], *([key] if key else []))]
    text = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(where)}: {text}" if where else text


def as_float32(state: Mapping[str, Any], shown: Path) -> dict[str, Tensor]:
    """The same tensors in float32, contiguous. Raises CheckpointError for what is no tensor of numbers."""
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            told = type(value).__name__ if not isinstance(value, Tensor) else str(value.dtype)
            raise CheckpointError(f"{shown} is not a mapping of names to weights: {key!r} is a {told}")
    return {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in state.items()}


def file_of(path: Path, what: str) -> Path:
    """The path, if it is a file. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; {what} is a file")
    return path
