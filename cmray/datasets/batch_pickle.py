"""A foreign pickle of a dict with arrays, read without running anything that it names."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from cmray.core.errors import DataError
from cmray.datasets.arrays import printable


def read_batch_pickle(where: str, content: bytes) -> dict[str, Any]:
    """The dict with its keys as text; arrays of integers become NumPy arrays, text of Python 2 stays bytes.

    What a pickle may name are the few things an array is written with, and none of them is the real one: they are
    stand-ins that keep what they are given, and the arrays are made from that afterwards.

    Raises:
        DataError: the pickle is damaged, names anything else, or is not a dict.
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise _Refused(f"holds a {type(found).__name__}, not a dict")
        return {_text(key): value.array() if isinstance(value, _Array) else value for key, value in found.items()}
    except _Refused as error:
        raise DataError(f"{where} {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = printable(f"{type(error).__name__} {error}")
        raise DataError(f"{where} cannot be read as a pickle: {reason}") from None


class _Refused(Exception):
    """What follows the file's name in the message."""


class _Dtype:
    def __init__(self, code: Any, *_: Any):
        self.code = _text(code)

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])  # "|", "<", ">"

    def dtype(self) -> np.dtype:
        if not re.fullmatch(r"[iu][1248]", self.code):
            raise _Refused(f"has an array of type {printable(self.code)}; only integers are read")
        return np.dtype(self.code).newbyteorder(getattr(self, "order", "|"))  # type: ignore[arg-type]


class _Array:
    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _version, shape, dtype, fortran, values = self.state
        return np.frombuffer(values, dtype.dtype()).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: Any, codec: Any = "utf-8") -> bytes:
    """Pickles of Python 3 in protocol 2 write bytes as text and its codec."""
    if not isinstance(text, str) or codec not in ("latin1", "utf-8"):
        raise _Refused(f"encodes {type(text).__name__} as {codec!r}")
    return text.encode(codec)


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = _STAND_INS.get((module_name, global_name))
        if found is None:
            asked = printable(f"{module_name}.{global_name}")
            raise _Refused(f"is a pickle that asks for {asked}; only arrays and numbers are read")
        return found


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
