"""Reads experiment files: YAML, extends, overrides, and errors that say where."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cmray.config.shipped import shipped_experiments
from cmray.core.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`; what it brings in may be given anew
            continue
        key = loader.construct_object(key_node)
        if not isinstance(key, str | int | float):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class RawExperiment:
    """Merged mappings of an experiment file, remembering which file each field came from."""

    def __init__(self, path: Path):
        self.path = _shown(path)
        self.values: dict[str, Any] = {}
        self._origin: dict[str, str] = {}

    def merge(self, values: Mapping[str, Any], origin: str) -> None:
        self.values = merged(self.values, values)
        for key in _dotted_keys(values):
            self._origin[key] = origin

    def override(self, key: str, value: Any, origin: str) -> None:
        set_dotted(self.values, key, value)
        self._origin[key] = origin

    def note(self, path: str, origin: str) -> None:
        """That the value of a field comes from there."""
        self._origin[path] = origin

    def origin(self, path: str) -> str:
        """Where the field, or the nearest mapping around it, was written."""
        while path:
            if path in self._origin:
                return self._origin[path]
            path = path.rpartition(".")[0]
        return str(self.path)

    def overrides_in(self, path: str) -> list[str]:
        """The `--set KEY=VALUE` that changed something below a mapping, in the order they were given."""
        prefix = f"{path}." if path else ""
        return [o for key, o in self._origin.items() if key.startswith(prefix) and o.startswith("--set ")]


def load_raw(path: Path, overrides: Sequence[str] = (), overlays: Sequence[Path] = ()) -> RawExperiment:
    """An experiment file with everything it extends, overlays merged over it, and `key=value` overrides.

    The rules of all files (see `config.overlay`) are applied after merging and before the overrides. With overlays the
    experiment is called NAME-STEM, so that its results lie apart.

    Raises:
        ConfigError: a file that cannot be read or merged, an overlay with a name of its own, rules about no field.
    """
    raw = RawExperiment(path)
    rules: list[tuple[Path, dict[str, Any]]] = []
    for overlay in (None, *overlays):
        name = raw.values.get("name")
        for file, values in _layers(overlay or path, ()):
            if overlay is not None and {"name", "description"} & set(values):
                raise ConfigError(
                    f"{file}: an overlay has no name and no description; merged over {raw.path} the experiment is "
                    f"called {name}-{overlay.stem}"
                )
            rules.append((file, {key: values.pop(key) for key in ("replace", "drop") if key in values}))
            raw.merge(values, str(file))
        if overlay is not None and isinstance(name, str):
            raw.merge({"name": f"{name}-{overlay.stem}"}, f"{raw.path} with --overlay {overlay}")
    _apply(raw, rules)
    for item in overrides:
        raw.override(*assignment(item), f"--set {item}")
    return raw


def _hint(path: Path) -> str:
    """For those who have cmray without its tree, and type what they read."""
    try:
        shipped = f"{path.parent.name}/{path.name}" in {f"experiments/{name}" for name in shipped_experiments()}
    except ConfigError:
        return ""
    return f"; `cmray init {path.parent.name}` makes a folder of those that come with cmray" if shipped else ""


def assignment(item: str) -> tuple[str, Any]:
    """The key and the value, which is YAML, of `--set KEY=VALUE`. Raises ConfigError."""
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {item}: write it as key=value, for example --set train.steps=100")
    try:
        return key.strip(), yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"--set {item}: the value is not valid YAML: {_yaml_message(error)}") from None


def _apply(raw: RawExperiment, rules: Sequence[tuple[Path, dict[str, Any]]]) -> None:
    """Raises ConfigError for rules that are none."""
    if not any(given for _, given in rules):
        return
    from cmray.config.overlay import Rules, apply_rules  # knows every component; few files have rules

    for file, given in rules:
        alone = RawExperiment(file)
        alone.merge(given, str(file))
        for field in apply_rules(raw.values, validated(Rules, given, alone)):
            raw.note(field, str(file))


def _layers(path: Path, above: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """The mappings of a file and of all it extends, the deepest first. Paths inside become absolute."""
    try:
        path = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a zero byte
        raise ConfigError(f"experiment file {str(path)!r} cannot be read: {error}") from None
    shown = _shown(path)
    if path in above:
        chain = " -> ".join(str(_shown(p)) for p in (*above, path))
        raise ConfigError(f"{shown}: extends goes in a circle: {chain}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        by = f", but {_shown(above[-1])} extends it" if above else ""
        raise ConfigError(f"experiment file {shown} does not exist{by or _hint(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"experiment file {shown} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{shown}: not valid YAML: {_yaml_message(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{shown}: an experiment file is a mapping of fields, found {type(values).__name__}")
    extends = values.pop("extends", [])
    extends = [extends] if isinstance(extends, str) else extends
    if not isinstance(extends, list) or not all(isinstance(e, str) for e in extends):
        raise ConfigError(f"{shown}: extends: a file name or a list of them is allowed, found {extends!r}")
    for section, key in (("teacher", "experiment"), ("teacher", "checkpoint"), ("data", "path")):
        node = values.get(section)
        if isinstance(node, dict) and isinstance(node.get(key), str) and "://" not in node[key]:
            try:
                node[key] = os.path.normpath(path.parent / Path(node[key]).expanduser())
            except RuntimeError as error:
                raise ConfigError(f"{shown}: {section}.{key}: {node[key]} cannot be found: {error}") from None
    layers: list[tuple[Path, dict[str, Any]]] = []
    for parent in extends:
        layers += _layers(path.parent / parent, (*above, path))
    return [*layers, (shown, values)]


#: keys of which a section holds one: data by name or path, a teacher by experiment (with overrides) or checkpoint
_ALTERNATIVES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data": (("path", "dataset"), ("name",)),
    "teacher": (("checkpoint",), ("experiment", "overrides")),
}


#: mappings whose `name` is a field like any other: all of them share the rest
_NAMED_BY_THE_WAY = frozenset({"optimizer"})


def merged(base: Mapping[str, Any], over: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping. A component of another name replaces the one below whole.

    Args:
        section: the key that both stand under; "" for a whole file.
    """
    out = dict(base)
    one, other = _ALTERNATIVES.get(section, ((), ()))  # what is given now takes the place of the other
    for given, replaced in ((one, other), (other, one)):
        if given and given[0] in over and not any(key in over for key in replaced):
            out = {key: value for key, value in out.items() if key not in replaced}
    for key, value in over.items():
        below = out.get(key)
        if isinstance(below, str) and isinstance(value, Mapping) and "name" not in value:
            below = {"name": below}
        replaced = key not in _NAMED_BY_THE_WAY and isinstance(below, Mapping) and _renames(below, value)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and not replaced:
            out[key] = merged(below, value, key)
        else:
            out[key] = merged({}, value) if isinstance(value, Mapping) else value
    return out


def _renames(below: Mapping[str, Any], value: Any) -> bool:
    return isinstance(value, Mapping) and "name" in value and value["name"] != below.get("name")


def set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    """values["a"]["b"] = value for the key "a.b", through the same rules as `merged`. Raises ConfigError."""
    nested: Any = value
    for part in reversed(key.split(".")):
        if not part:
            raise ConfigError(f"field '{key}' has an empty part")
        nested = {part: nested}
    node: Any = values
    walked: list[str] = []
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
        walked.append(part)
        if node is not None and not isinstance(node, dict | str):
            raise ConfigError(f"field '{key}': {'.'.join(walked)} is {node!r}, which has no fields of its own")
    result = merged(values, nested)
    values.clear()
    values.update(result)


def validated(model: type[M], values: Mapping[str, Any], raw: RawExperiment, context: str = "") -> M:
    """A typed config, or a ConfigError in one line: file, field path, what was found, what is allowed."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, raw, context)) from None


def describe(error: ValidationError, raw: RawExperiment, context: str = "") -> str:
    """The first of a validation's errors, as one line."""
    # an unknown key hides what its misspelling left missing, so it is told first
    first, *others = sorted(error.errors(), key=lambda e: e["type"] != "unknown_key")
    details: dict[str, Any] = dict(first.get("ctx") or {})
    parts = [str(part) for part in first["loc"]]
    if "key" in details:
        parts.append(str(details["key"]))
    path = ".".join(parts)
    message = first["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").replace("Field required", "is required but not given")
    found = first.get("input")
    if first["type"] not in {"missing", "unknown_key", "component", "value_error"}:
        message += f"; found {found!r}"
    where = raw.origin(path)
    if first["type"] == "value_error" and not where.startswith("--set "):  # fields that contradict each other
        where = " with ".join([where, *raw.overrides_in(path)])
    where += ": " + (f"{path}: " if path else "")
    more = f" (and {len(others)} more)" if others else ""
    return " ".join(f"{where}{message}{f' [{context}]' if context else ''}{more}".split())


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += _dotted_keys(value, f"{prefix}{key}.")
    return keys


def _yaml_message(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{problem} (line {mark.line + 1})" if mark else " ".join(str(problem).split())


def _shown(path: Path) -> Path:
    """The path as the user would write it."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
