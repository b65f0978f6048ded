"""What comes with cmray itself: lists of all components are about these, as a plug-in may be installed here."""

from __future__ import annotations

from typing import Any

from cmray.core.plugins import plugin_of
from cmray.core.registry import Registry


def own(registry: Registry[Any]) -> list[str]:
    return [name for name, cls in registry.classes().items() if plugin_of(cls) is None]
