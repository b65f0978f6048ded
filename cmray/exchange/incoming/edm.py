"""Network snapshots of NVlabs/edm: pickles, read as data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmray.core.errors import CheckpointError
from cmray.exchange.base import Foreign, Source, as_float32, compare, file_of, meta_net, sources
from cmray.exchange.edm_keys import adm_fields, adm_from_edm, adm_to_edm, levels_of, song_fields, without_extras
from cmray.exchange.inert import Record, read_pickle, tensors_of
from cmray.exchange.published import PUBLISHED
from cmray.nn.adm import ADMConfig
from cmray.nn.song import SongConfig
from cmray.nn.song_state import PREFIX, from_edm, to_edm


@sources.register("edm")
class EDM(Source):
    """The network under "ema" of a snapshot: SongUNet or DhariwalUNet in EDM's own preconditioning."""

    def read(self, path: Path) -> Foreign:
        held = read_pickle(file_of(path, "a network snapshot of NVlabs/edm"))
        outer = held.get("ema") if isinstance(held, Mapping) else held
        if not isinstance(outer, Record):
            keys = f", but: {', '.join(map(str, held))}" if isinstance(held, Mapping) else ""
            raise CheckpointError(f"{path} is not a network snapshot of NVlabs/edm: it holds no network 'ema'{keys}")
        inner = outer.mapping("_modules").get("model")
        if outer.kind != "EDMPrecond":
            raise CheckpointError(f"{path} holds a network in {outer.kind}; cmray samples those in EDMPrecond")
        if not isinstance(inner, Record) or inner.kind not in ("SongUNet", "DhariwalUNet"):
            found = inner.kind if isinstance(inner, Record) else "nothing"
            raise CheckpointError(f"{path} holds the network {found}; cmray knows SongUNet and DhariwalUNet")
        if self.image_size is not None:
            raise CheckpointError(f"{path} tells the size of its images by itself; leave --image-size out")
        told = outer["sigma_data"]
        noise = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": told if _positive(told) else 0.5}
        state = as_float32(tensors_of(inner), path)
        heights, shared, shape = levels_of(state, path)
        shared["dropout"] = _dropout(inner)
        classes = 0
        if "map_label.weight" in state:
            classes = state["map_label.weight"].shape[1]
        known = PUBLISHED.get(path.name)
        licence = known.licence if known else None
        if inner.kind == "DhariwalUNet":
            config = self.config(adm_fields(state, shared, heights), path)
            _expect(config, ADMConfig, path)
            net = meta_net(config, shape, classes, path)
            state = without_extras(state, filters=False)
            compare(state, adm_to_edm(net.state_dict(), config, heights), path)
            ours = adm_from_edm(state, config, heights)
        else:
            config = self.config(song_fields(state, shared), path)
            _expect(config, SongConfig, path)
            net = meta_net(config, shape, classes, path)
            state = without_extras(state, filters=True)
            expected = {k.removeprefix(PREFIX): t for k, t in to_edm(net.state_dict(), config, heights[0]).items()}
            compare(state, expected, path)
            ours = {key: tensor.contiguous() for key, tensor in from_edm(state, config).items()}
        return Foreign(config, ours, shape, classes, path, noise, {"name": "edm"}, licence=licence)


def _expect(config: Any, kind: type, path: Path) -> None:
    if not isinstance(config, kind):
        raise CheckpointError(f"{path}: --net names {config.name}, which is not the kind of network that it holds")


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _dropout(inner: Record) -> float:
    """Of its first block, for training on; 0 where the file does not tell."""
    encoder = inner.mapping("_modules").get("enc")
    for block in (encoder.mapping("_modules") if isinstance(encoder, Record) else {}).values():
        value = block["dropout"] if isinstance(block, Record) else None
        if isinstance(value, int | float) and 0 <= value < 1:
            return float(value)
    return 0.0
