"""Reads pickles of NVlabs' networks as data: no class, function or source code of the file is ever looked up or run.

Every global that a pickle may name stands below with what takes its place, all of it written here; any other name
ends the reading. What a pickle calls a class becomes a `Record` of its state.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmray.core.errors import CheckpointError


class Record:
    """An object of the pickle: the name of its class, and its state (a mapping, or whatever it was)."""

    kind = "?"

    def __init__(self, *args: Any):
        self.args = args
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getitem__(self, key: str) -> Any:
        """A field of the state, None where there is none."""
        return self.state.get(key) if isinstance(self.state, Mapping) else None

    def mapping(self, key: str) -> Mapping[Any, Any]:
        """A field that should be a mapping; empty where it is none."""
        value = self[key]
        return value if isinstance(value, Mapping) else {}


class Bag(dict):
    """A mapping whose class was a kind of dict."""

    def __setstate__(self, state: Any) -> None:
        """Its attributes are its items."""


class _Dtype:
    """A numpy dtype of plain numbers, by name."""

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?[fiub][1248]", name):
            raise pickle.UnpicklingError(f"the numpy type {name!r} is not one of plain numbers")
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like of types that are none of plain numbers."""


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a number of numpy is damaged")
    return np.frombuffer(data, np.dtype(dtype.name), count=1)[0].item()


def _persistent(meta: Any) -> Record:
    """An object of torch_utils.persistence, whose source code travels with it and is left alone."""
    if not isinstance(meta, Mapping) or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError("an object of torch_utils.persistence is damaged")
    record = Record()
    record.kind, record.state = meta["class_name"], meta.get("state") or {}
    return record


def _storage(data: Any) -> Any:
    """A tensor's memory, which torch's own restricted reader takes out of its bytes."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor has no memory")
    if math.prod(size) > storage.size():  # rows that share their memory would take more than the file holds
        raise pickle.UnpicklingError("a tensor is larger than its memory")
    values = torch.empty(0, dtype=storage.dtype).set_(storage.untyped(), 0, (storage.size(),), (1,))
    return values.as_strided(tuple(size), tuple(stride), offset)  # refuses what lies outside


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _record(name: str) -> type[Record]:
    return type("Record", (Record,), {"kind": name})


#: (module, name) in the pickle -> what takes its place
ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): lambda sides=(): tuple(sides),
    ("torch", "device"): lambda *where: ":".join(map(str, where)),
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): Bag,
    ("dnnlib", "EasyDict"): Bag,
    ("_codecs", "encode"): lambda text, encoding="latin1": text.encode("latin1"),  # how old protocols keep bytes
    **{(module, "set"): lambda items=(): set(items) for module in ("builtins", "__builtin__")},
    **{("torch", name): name for name in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")},
    **{(f"torch.nn.modules.{module}", name): _record(name) for module, name in (
        ("container", "ModuleDict"), ("container", "ModuleList"), ("container", "Sequential"))},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _record("numpy.ndarray") for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _record("numpy.ndarray") for core in ("core", "_core")},
    ("numpy", "ndarray"): _record("numpy.ndarray"),
    ("numpy", "dtype"): _Dtype,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Callable[..., Any]:
        if (module, name) not in ALLOWED:
            raise _ForeignNameError(f"{module}.{name}")
        return ALLOWED[module, name]


class _ForeignNameError(Exception):
    pass


def read_pickle(path: Path) -> Any:
    """What the file holds: plain values, tensors and Records.

    Raises:
        CheckpointError: the file names anything that is not listed here, or is no pickle; nothing was run.
    """
    try:
        # torch tells that its typed storages, which such pickles are made of, are of old
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            return _Unpickler(file).load()
    except _ForeignNameError as error:
        raise CheckpointError(
            f"{path} names {str(error)!r}, which is no part of a network's data; the reading stopped there, and "
            f"nothing of the file was run"
        ) from None
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile pickle may end in any error of the unpickler
        text = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path} is not a whole pickle: {text or type(error).__name__}") from None


def tensors_of(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of a module's Record and of those below it, by dotted names."""
    out: dict[str, Tensor] = {}
    if not isinstance(module, Record):
        return out
    for kind in ("_parameters", "_buffers"):
        out |= {f"{prefix}{k}": t for k, t in module.mapping(kind).items() if isinstance(t, Tensor)}
    for name, below in module.mapping("_modules").items():
        out |= tensors_of(below, f"{prefix}{name}.")
    return out
