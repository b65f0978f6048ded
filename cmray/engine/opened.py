"""Opens trained models, each once."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from pathlib import Path

import torch

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.core.errors import CmrayError
from cmray.engine.model import load_model, weights_file
from cmray.engine.session import default_device
from cmray.engine.trained import TrainedModel

#: bytes of networks that `open_trained` keeps
KEPT_NETWORKS = 1 << 30

_kept: OrderedDict[tuple[str, str, str, str], TrainedModel] = OrderedDict()
_lock = threading.Lock()


def open_trained(
    checkpoint: Path, folder: Path, device: torch.device | str | None = None, weights: str | None = None
) -> TrainedModel:
    """The model of a checkpoint, the same object for the same weights; safe to call from several threads.

    The networks used last are kept, up to 1 GiB.

    Args:
        folder: of its trial, or the checkpoint itself.
        device: "cpu", "cuda", "cuda:1"; by default a GPU where there is one.
        weights: "student" or "ema RATE"; by default the first EMA.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or has no such weights.
        CmrayError: a device that is not here.
    """
    place = _device(device)
    facts = read_checkpoint_facts(checkpoint)
    file = weights_file(facts, weights, checkpoint)
    key = (str(checkpoint.absolute()), file, facts.files[file], str(place))
    with _lock:
        found = _kept.pop(key, None) or TrainedModel(load_model(checkpoint, place, weights), folder, checkpoint)
        _kept[key] = found
        while len(_kept) > 1 and sum(map(_nbytes, _kept.values())) > KEPT_NETWORKS:
            _kept.popitem(last=False)
    return found


def _nbytes(model: TrainedModel) -> int:
    net = model.model.net
    return sum(tensor.nbytes for tensor in itertools.chain(net.parameters(), net.buffers()))


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return default_device()
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise CmrayError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}") from None
    return place
