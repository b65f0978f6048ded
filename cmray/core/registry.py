"""Registries find components by name. A component is one file with one decorated config class."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BeforeValidator, Field, SerializeAsAny
from pydantic_core import PydanticCustomError

from cmray.core import plugins
from cmray.core.errors import UnknownNameError, nearest
from cmray.core.strict import Strict

T = TypeVar("T", bound=type)


class ComponentConfig(Strict):
    """The typed options of one component. `name` is the registered name; subclasses add fields and `build`."""

    name: str = Field(default="", description="which component it is; alone it stands for its defaults")

    def model_post_init(self, _context: Any, /) -> None:
        if not self.name:
            object.__setattr__(self, "name", getattr(type(self), "registered_name", ""))


C = TypeVar("C", bound=ComponentConfig)

#: every registry of this process, as their modules are imported
_made: list[Registry[Any]] = []


class Registry(Generic[C]):
    """Named config classes of one kind, found lazily by importing the packages that hold them, then the plug-ins.

    Args:
        kind: what the components are, for messages ("solver").
        packages: dotted names of packages or modules to import before the first look-up.
    """

    def __init__(self, kind: str, packages: Sequence[str]):
        self.kind = kind
        self._packages = tuple(packages)
        self._classes: dict[str, type[C]] = {}
        self._imported = False
        _made.append(self)

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator. Raises ValueError when `name` is taken by another class."""

        def decorate(cls: T) -> T:
            if plugins.plugin_of(cls) is not None:  # cmray's own come first, so that a name is theirs
                self._import_own()
            other = self._classes.get(name)
            if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"{self.kind} '{name}' is registered twice: {other.__module__} and {cls.__module__}")
            cls.registered_name = name  # type: ignore[attr-defined]
            self._classes[name] = cls  # type: ignore[assignment]
            return cls

        return decorate

    def get(self, name: str) -> type[C]:
        """The config class called `name`. Raises UnknownNameError that lists the names there are."""
        self._discover()
        if name not in self._classes:
            raise UnknownNameError(f"unknown {self.kind} '{name}'; {nearest(name, self._classes)}")
        plugins.note_used(self._classes[name])
        return self._classes[name]

    def classes(self) -> dict[str, type[C]]:
        """All config classes by name. Unlike `get`, it asks for none of them: no plug-in counts as used."""
        self._discover()
        return {name: self._classes[name] for name in sorted(self._classes)}

    def names(self) -> list[str]:
        self._discover()
        return sorted(self._classes)

    def parse(self, value: Any) -> C:
        """A config from ``"heun"``, ``{"name": "heun", ...}`` or an instance. Raises pydantic's errors."""
        if isinstance(value, ComponentConfig):
            plugins.note_used(type(value))
            return value  # type: ignore[return-value]
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise PydanticCustomError(
                "component",
                "a {kind} is a name or a mapping with 'name', one of: {names}; found {found}",
                {"kind": self.kind, "names": ", ".join(self.names()), "found": repr(value)},
            )
        try:
            cls = self.get(value["name"])
        except UnknownNameError as error:
            raise PydanticCustomError("component", "{message}", {"message": str(error), "key": "name"}) from None
        return cls.model_validate(value)

    def _discover(self) -> None:
        self._import_own()
        plugins.load()

    def _import_own(self) -> None:
        if self._imported:
            return
        self._imported = True
        for package_name in self._packages:
            package = importlib.import_module(package_name)
            for info in pkgutil.iter_modules(getattr(package, "__path__", [])):
                importlib.import_module(f"{package_name}.{info.name}")


def from_plugins() -> list[tuple[plugins.Plugin, str, str]]:
    """(plug-in, kind, name) of every component that a plug-in brings. Raises PluginError."""
    plugins.load()
    found = []
    for registry in _made:
        for name, cls in registry._classes.items():  # a plug-in that joined a registry has imported it
            plugin = plugins.plugin_of(cls)
            if plugin is not None:
                found.append((plugin, registry.kind, name))
    return sorted(found, key=lambda each: (each[0].module, each[1], each[2]))


@dataclass(frozen=True)
class Holds:
    """What a field's annotation says of the component it holds, for whoever describes configs."""

    registry: Registry[Any]
    number: tuple[str, str] | None  # as in `component`


def component(registry: Registry[Any], description: str = "", number: tuple[str, str] | None = None) -> Any:
    """The pydantic annotation of a field that holds one component of `registry`.

    Args:
        description: of the field, unless it has one of its own.
        number: (component name, field) that a bare number in a YAML file stands for.
    """

    def parse(value: Any) -> Any:
        if number is not None and isinstance(value, int | float) and not isinstance(value, bool):
            value = {"name": number[0], number[1]: value}
        return registry.parse(value)

    return Annotated[
        SerializeAsAny[ComponentConfig],
        BeforeValidator(parse),
        Holds(registry, number),
        Field(description=description or f"a {registry.kind}"),
    ]
