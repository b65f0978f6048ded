"""Checkpoints with random weights, and foreign files that hold the same: nothing of it is downloaded or trained."""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmray.config.checkpoint_facts import CheckpointFacts, ema_file
from cmray.config.run import RunConfig
from cmray.engine.checkpoint import save_checkpoint
from cmray.engine.model import Model, load_model

torch.set_num_threads(1)
CPU = torch.device("cpu")

ADM: dict[str, Any] = {
    "name": "adm", "channels": 32, "multipliers": [1, 2], "blocks": 1, "attention_resolutions": [4], "head_width": 32,
}  # fmt: skip
SONG: dict[str, Any] = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention_resolutions": [4]}
CT: dict[str, Any] = {"name": "ct", "num_sigmas": 18}


def run_of(net: Mapping[str, Any], objective: Any = CT, **noise: float) -> RunConfig:
    return RunConfig.model_validate({
        "data": {"name": "digits"},
        "net": dict(net),
        "noise": {"sigma_data": 0.5, **noise},
        "objective": objective,
        "train": {"steps": 4, "batch_size": 8, "ema": [0.99]},
    })  # fmt: skip


def random_net(run: RunConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """No branch of it is zero, and its output is about 1."""
    torch.manual_seed(0)
    net = run.net.build(shape, classes)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape) / p[0].numel() ** 0.5 if p.ndim > 1 else p + 0.1 * torch.randn(p.shape))
    return net.eval().requires_grad_(False)


def made(
    folder: Path,
    net: Mapping[str, Any],
    shape: tuple[int, int, int] = (3, 8, 8),
    classes: int = 0,
    objective: Any = CT,
    **noise: float,
) -> Path:
    """A checkpoint <folder>/checkpoints/step-00000004 with random weights in it."""
    run = run_of({**net, "class_conditional": bool(classes)}, objective, **noise)
    state = random_net(run, shape, classes).state_dict()
    facts = CheckpointFacts(
        step=4, nimg=32, seconds=1.0, shape=shape, num_classes=classes, run_config=run.model_dump(mode="json"),
        files={}, scalars={},
    )  # fmt: skip
    parts = {"student.safetensors": state, ema_file(0.99): state}
    return save_checkpoint(folder / "checkpoints", parts, facts, keep=1)


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    return load_model(checkpoint, CPU).net.state_dict()


def equal_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert sorted(a) == sorted(b)
    for key in a:
        assert a[key].dtype == b[key].dtype
        assert torch.equal(a[key], b[key]), key


def one_step(model: Model, z: Tensor, label: Tensor | None = None) -> Tensor:
    """f(sigma_max z, sigma_max)."""
    sigma = torch.full((len(z),), model.run.noise.sigma_max)
    with torch.no_grad():
        return model.denoise(model.run.noise.sigma_max * z, sigma, label)


class Persistent(nn.Module):
    """Pickles itself as NVlabs' torch_utils.persistence does: source code beside the state of a module."""

    def __init__(self, kind: str, **fields: Any):
        super().__init__()
        self.__dict__.update(fields, _kind=kind)

    def __reduce__(self) -> Any:
        source = "raise SystemExit('the source code of a pickle was run')"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self._kind, "state": self.__dict__}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


def _tree(state: Mapping[str, Tensor], kind: str, buffers: tuple[str, ...]) -> Persistent:
    """Modules that hold a state dict: ModuleDicts for enc and dec, everything else persistent."""
    root = Persistent(kind)
    for key, tensor in state.items():
        *path, leaf = key.split(".")
        at: Any = root
        for i, name in enumerate(path):
            if name not in at._modules:
                block = Persistent("UNetBlock", dropout=0.1, skip_scale=np.sqrt(0.5))
                at.add_module(name, nn.ModuleDict() if path[: i + 1] in (["enc"], ["dec"]) else block)
            at = at._modules[name]
        if leaf in buffers:
            at.register_buffer(leaf, tensor)
        else:
            at.register_parameter(leaf, nn.Parameter(tensor))
    return root


def snapshot(
    state: Mapping[str, Tensor],
    kind: str = "SongUNet",
    outer: str = "EDMPrecond",
    protocol: int | None = None,
    damage: Callable[[nn.Module], None] = lambda net: None,
) -> bytes:
    """A network snapshot of NVlabs/edm with this state dict (without the prefix "model."), `damage` done to it."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("the pickle was read by the ordinary unpickler")

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    inner = _tree(state, kind, ("resample_filter", "freqs"))
    net = Persistent(outer, sigma_min=0, sigma_max=float("inf"), sigma_data=0.5, label_dim=0)
    net.add_module("model", inner)
    damage(net.eval())
    held = {
        "ema": net,
        "loss_fn": Persistent("EDMLoss", P_mean=-1.2),
        "augment_pipe": Persistent("AugmentPipe", p=np.float64(0.12), wavelets=np.arange(4.0)),
        "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "use_labels": False},
    }
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    try:
        out = io.BytesIO()
        pickle.Pickler(out, protocol=protocol).dump(held)
        return out.getvalue()
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]
