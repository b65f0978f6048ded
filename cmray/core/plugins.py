"""Plug-ins: components in files outside of cmray, announced by installed packages or named in CMRAY_PLUGINS.

A plug-in is a module; importing it registers its components, by the decorators that cmray's own files use. Nothing is
looked for before the first look-up of a registry.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import socket
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cmray.core.errors import CmrayError

#: the group under which a package announces its modules: [project.entry-points."cmray.plugins"] name = "module"
GROUP = "cmray.plugins"
#: modules, and files of them, that are no installed package's: "near.py,my_package.samplers"
VARIABLE = "CMRAY_PLUGINS"
#: what stands in the place of a package where the module is a file of the user's
TRAVELLED = "file"


class PluginError(CmrayError):
    """A plug-in that is missing or cannot be imported."""


@dataclass(frozen=True)
class Plugin:
    """A module that registers components.

    Args:
        module: its dotted name.
        distribution, version: of the installed package that brings it; "" for a file of the user's.
        entry_point: its name there; "" where CMRAY_PLUGINS names the module.
        file: the file that CMRAY_PLUGINS names; None for a module, and where the file has travelled.
        is_file: a file of the user's, here or where it came from.
    """

    module: str
    distribution: str = ""
    version: str = ""
    entry_point: str = ""
    file: Path | None = None
    is_file: bool = False

    @property
    def title(self) -> str:
        """How records and messages call it: a package and its version, or a file and the hash of its content."""
        return f"{self.key} {self.stamp}"

    @property
    def key(self) -> str:
        return self.distribution or (f"{self.module}.py" if self.is_file else self.module)

    @property
    def stamp(self) -> str:
        """The version, or the beginning of the file's SHA-256."""
        return self.version if self.distribution else f"sha256:{_digest(self.module)}"

    def load(self) -> None:
        """Imports it. Raises PluginError, one line that names it and what went wrong."""
        if self.file is not None:
            _make_importable(self.file)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what it prints is no part of a command's output
                module = importlib.import_module(self.module)
        except (Exception, SystemExit) as error:  # whatever a foreign module raises
            raise PluginError(self._why(error)) from error
        found = getattr(module, "__file__", None)
        if self.file is not None and (found is None or Path(found).resolve() != self.file):
            raise PluginError(
                f"{VARIABLE} names {self.file}, but module {self.module} is {found or 'built in'} already; rename it"
            )

    def _why(self, error: BaseException) -> str:
        text = str(error).strip()
        reason = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
        top = self.module.partition(".")[0]
        gone = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == top
        if self.entry_point:
            return (
                f"plug-in '{self.entry_point}' of {self.distribution} {self.version} cannot be imported from "
                f"{self.module}: {reason}; mend it, or pip uninstall {self.distribution}"
            )
        if gone and self.distribution:
            return (
                f"the plug-in {self.distribution} {self.version} (module {self.module}) is not installed on "
                f"{socket.gethostname()}; install it on every node"
            )
        hint = "name its file, or put its folder on PYTHONPATH" if gone else f"mend it, or take it out of {VARIABLE}"
        return f"{VARIABLE} names {self.file or self.module}, which cannot be imported: {reason}; {hint}"


def announced() -> list[Plugin]:
    """All plug-ins there are, not imported: those of installed packages by name, then those of CMRAY_PLUGINS.

    Raises PluginError when CMRAY_PLUGINS names a file that is not there.
    """
    found: dict[str, Plugin] = {}
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: (p.module, p.name)):
        package = point.dist.name if point.dist else ""
        version = point.dist.version if point.dist else ""
        found.setdefault(point.module, Plugin(point.module, package, version, point.name))
    for word in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        plugin = _named(word)
        same = found.setdefault(plugin.module, plugin)
        if plugin.file is not None and same.file != plugin.file:
            other = same.file or f"module {same.module} of {same.title}"
            raise PluginError(f"{VARIABLE} names {plugin.file}, but a plug-in is called so already: {other}; rename it")
    return list(found.values())


def _named(word: str) -> Plugin:
    """What stands in CMRAY_PLUGINS: a file or a module; workers are told module@package==version or module@file."""
    if word.endswith(".py") or os.sep in word:
        path = Path(word).expanduser().resolve()
        if not path.is_file() or path.suffix != ".py" or not path.stem.isidentifier():
            what = "does not exist" if not path.exists() else "is no Python file that can be imported by its name"
            raise PluginError(f"{VARIABLE} names {word}, which {what}")
        return Plugin(path.stem, file=path, is_file=True)
    module, _, package = word.partition("@")
    if package == TRAVELLED:
        return Plugin(module, is_file=True)
    distribution, _, version = package.partition("==")
    if not all(part.isidentifier() for part in module.split(".")):
        raise PluginError(f"{VARIABLE} names '{word}', which is neither a Python file nor a module's dotted name")
    return Plugin(module, distribution, version) if package else _installed(module)


def _installed(module: str) -> Plugin:
    """A module by its name alone: with its package, if it is of an installed one."""
    top = module.partition(".")[0]
    packages = importlib.metadata.packages_distributions().get(top, [])
    if len(packages) != 1:
        return Plugin(module)
    return Plugin(module, packages[0], importlib.metadata.version(packages[0]))


_lock = threading.RLock()
_loaded: dict[str, Plugin] = {}
_used: dict[str, Plugin] = {}
_state = {"done": False, "busy": False}


def load() -> None:
    """Imports every plug-in, once in a process. Raises PluginError, at every call until it is mended."""
    with _lock:
        if _state["done"] or _state["busy"]:  # busy: a plug-in looks a component up while it is imported
            return
        _state["busy"] = True
        try:
            for plugin in announced():
                plugin.load()
                _loaded[plugin.module] = plugin
            _state["done"] = True
        finally:
            _state["busy"] = False


def plugin_of(component: type) -> Plugin | None:
    """The plug-in that a component comes from; None for cmray's own."""
    module = component.__module__
    if module.partition(".")[0] == "cmray":
        return None
    part = module
    while part:
        if part in _loaded:
            return _loaded[part]
        part = part.rpartition(".")[0]
    same = [p for p in _loaded.values() if p.module.partition(".")[0] == module.partition(".")[0]]
    return same[0] if same else Plugin(module)


def note_used(component: type) -> None:
    """Keeps in mind that this process has asked for a component by its name, where a plug-in brings it."""
    plugin = plugin_of(component)
    if plugin is not None and plugin.module in _loaded:
        _used[plugin.module] = plugin


def used() -> list[Plugin]:
    """The plug-ins whose components this process has asked for, in the order of their modules."""
    return [_used[module] for module in sorted(_used)]


def stamps(plugins: Iterable[Plugin]) -> dict[str, str]:
    """What records say of plug-ins: {package: version}, {file: hash of its content}."""
    return {plugin.key: plugin.stamp for plugin in plugins}


def variable_for_workers(plugins: Iterable[Plugin]) -> str:
    """The value of CMRAY_PLUGINS for processes elsewhere: modules, with the package that each should be in."""
    return ",".join(f"{p.module}@{_origin(p)}" for p in plugins)


def _origin(plugin: Plugin) -> str:
    return f"{plugin.distribution}=={plugin.version}" if plugin.distribution else TRAVELLED if plugin.is_file else ""


def _make_importable(file: Path) -> None:
    """Puts the folder of a file behind all others, so that none of its files hides another module."""
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.append(folder)


def _digest(module: str) -> str:
    found = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(found).read_bytes()).hexdigest()[:12] if found else "unknown"
