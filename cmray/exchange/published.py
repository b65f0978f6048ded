"""Published files of weights, by their names: what they were trained with and on, and under which terms they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: licence field of a model card, as Hugging Face writes it
MIT, NON_COMMERCIAL = "mit", "cc-by-nc-sa-4.0"


@dataclass(frozen=True)
class Published:
    """One file. `data` as in an experiment file; `licence` is None where the publisher names none for the weights."""

    objective: Any
    data: dict[str, Any]
    licence: str | None


def _consistency_models() -> dict[str, Published]:
    """The twelve files that the README of openai/consistency_models lists; N as in its launch file."""
    data = {
        "imagenet64": {"path": "data/imagenet64", "dataset": "imagenet64"},
        "bedroom256": {"path": "data/lsun-bedroom256", "dataset": "lsun"},
        "cat256": {"path": "data/lsun-cat256", "dataset": "lsun"},
    }
    out = {}
    for name, where in data.items():
        last = 201 if name == "imagenet64" else 151
        trained: dict[str, Any] = {
            f"edm_{name}_ema.pt": {"name": "edm"},
            f"cd_{name}_l2.pt": {"name": "cd", "num_sigmas": 40, "mu": 0.95, "distance": "l2"},
            f"cd_{name}_lpips.pt": {"name": "cd", "num_sigmas": 40, "mu": 0.95, "distance": "lpips"},
            f"ct_{name}.pt": {"name": "ct", "num_sigmas": last, "distance": "lpips"},
        }
        out |= {file: Published(objective, where, None) for file, objective in trained.items()}
    return out


def _edm() -> dict[str, Published]:
    """The files of NVlabs/edm with its own preconditioning; its licence is the repository's LICENSE.txt."""
    cifar10 = {"path": "data/cifar10", "dataset": "cifar10"}
    imagenet = {"path": "data/imagenet64", "dataset": "imagenet64"}
    data = {f"edm-cifar10-32x32-{label}-{arch}.pkl": cifar10 for label in ("cond", "uncond") for arch in ("vp", "ve")}
    data |= {f"edm-{name}-64x64-uncond-{arch}.pkl": {"path": f"data/{name}-64x64"}
             for name in ("ffhq", "afhqv2") for arch in ("vp", "ve")}  # fmt: skip
    data["edm-imagenet-64x64-cond-adm.pkl"] = imagenet
    return {file: Published({"name": "edm"}, where, NON_COMMERCIAL) for file, where in data.items()}


PUBLISHED: dict[str, Published] = {**_consistency_models(), **_edm()}
