"""Reads what others wrote: JSON, and the files of torch.save, of which nothing is run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cmray.core.errors import CheckpointError


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """A mapping. Raises CheckpointError, with `hint` when there is no such file."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; {hint}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; it must hold a mapping")
    return value


def read_state(path: Path) -> Mapping[str, Any]:
    """A state dict of torch.save, with weights_only. Raises CheckpointError for what is none, OSError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        told = str(error).strip().splitlines()
        named = next((line.strip() for line in told if "GLOBAL" in line), told[0] if told else "")
        raise CheckpointError(f"{path} holds more than tensors, and nothing of it was run: {named}") from None
    except OSError:
        raise
    except Exception as error:  # what is no such file may end in any error of the reader
        text = (str(error).splitlines() or [""])[0]
        text = text if " " in text else type(error).__name__  # the key of a KeyError says nothing
        raise CheckpointError(f"{path} is not a file of torch.save: {text}") from None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; a state dict is a mapping of names to tensors")
    return state
