"""Which plug-ins a config needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from cmray.config.run import CurveConfig, DataConfig
from cmray.core.plugins import Plugin, plugin_of
from cmray.core.registry import ComponentConfig
from cmray.datasets import datasets
from cmray.metrics.extractors import extractors


def plugins_of(config: BaseModel) -> list[Plugin]:
    """The plug-ins of all components in a config, in the order of their modules."""
    found = (plugin_of(cls) for cls in _classes(config))
    return sorted({p for p in found if p is not None}, key=lambda p: p.module)


def _classes(value: Any) -> Iterator[type]:
    if isinstance(value, ComponentConfig):
        yield type(value)
    if isinstance(value, DataConfig):
        yield from (datasets.classes()[name] for name in (value.name, value.dataset) if name in datasets.classes())
    if isinstance(value, CurveConfig) and isinstance(value.extractor, str):
        yield extractors.classes()[value.extractor]
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _classes(getattr(value, name))
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _classes(inner)
