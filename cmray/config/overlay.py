"""Rules that reach into the panels of an experiment: values that are replaced, fields that panels no longer set.

They are what lets one small overlay serve files that it does not know: merging alone cannot reach what a panel says.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, Field, field_validator

from cmray.config.experiment import RUN_FIELDS, ExperimentConfig
from cmray.core.curricula import mu_schedules, num_sigmas_schedules
from cmray.core.distances import distances
from cmray.core.errors import nearest
from cmray.core.registry import Registry
from cmray.core.strict import Strict
from cmray.core.times import time_samplers
from cmray.nn import nets
from cmray.objectives.base import objectives
from cmray.solvers import solvers

#: fields that hold one of several components: a rule may name a field of any of them
_COMPONENTS: dict[str, Registry[Any]] = {
    "net": nets,
    "objective": objectives,
    "objective.solver": solvers,
    "objective.distance": distances,
    "objective.num_sigmas": num_sigmas_schedules,
    "objective.mu": mu_schedules,
    "objective.times": time_samplers,
}


class Rules(Strict):
    """What a file asks to be changed in all that is merged up to it and over it."""

    replace: dict[str, dict[Any, Any]] = Field(
        default={}, description="dotted field: {old: new}, wherever that value or a component of that name stands"
    )
    drop: tuple[str, ...] = Field(default=(), description="dotted fields of a run that panels no longer set")

    @field_validator("replace")
    @classmethod
    def _fields(cls, value: dict[str, dict[Any, Any]]) -> dict[str, dict[Any, Any]]:
        for path in value:
            check_field(path, set(ExperimentConfig.model_fields) - {"panels", "name"})
        return value

    @field_validator("drop")
    @classmethod
    def _run_fields(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            check_field(path, set(RUN_FIELDS))
        return value


def check_field(path: str, first: set[str]) -> None:
    """Raises ValueError unless `path` names a field of an experiment that begins with one of `first`."""
    classes: list[type[BaseModel]] = [ExperimentConfig]
    walked: list[str] = []
    for part in path.split("."):
        known = {name for c in classes for name in c.model_fields} if walked else first
        if part not in known:
            raise ValueError(f"field '{path}' does not exist: {_where(walked)} no '{part}'; {nearest(part, known)}")
        walked.append(part)
        registry = _COMPONENTS.get(".".join(walked))
        if registry is not None:
            classes = list(registry.classes().values())
        else:
            classes = [m for c in classes if part in c.model_fields for m in _models(c.model_fields[part].annotation)]
        if not classes:
            return  # a value, or a mapping of any keys


def _where(walked: list[str]) -> str:
    return f"{'.'.join(walked)} has" if walked else "an experiment has"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in _models(part)]


def apply_rules(values: dict[str, Any], rules: Rules) -> set[str]:
    """Changes an experiment's merged mapping in place; returns the top-level fields that a replacement touched.

    An old value that stands nowhere is no error: an overlay serves several files. Malformed panels are left alone.
    """
    touched = set()
    for path, table in rules.replace.items():
        before = copy.deepcopy({k: v for k, v in values.items() if k != "panels"})
        for key in [k for k in values if k != "panels"]:
            values[key] = _swapped(key, values[key], path, table)[1]
        if any(values[k] != v for k, v in before.items()):
            touched.add(path)
    if "panels" in values:
        values["panels"] = _apart(values["panels"])
    panels = values.get("panels")
    for panel in panels.values() if isinstance(panels, dict) else ():
        if isinstance(panel, dict):
            _change_panel(panel, rules)
    return touched


def _apart(value: Any) -> Any:
    """A copy in which nothing stands twice, as anchors of YAML make it: each place is changed once."""
    if isinstance(value, dict):
        return {key: _apart(inner) for key, inner in value.items()}
    return [_apart(inner) for inner in value] if isinstance(value, list) else value


def _change_panel(panel: dict[str, Any], rules: Rules) -> None:
    for path in rules.drop:
        for mapping in _mappings_of(panel):
            _drop(mapping, path)
    random = panel.get("random")
    if isinstance(random, dict) and random.get("fields") == {}:
        del panel["random"]  # all that it drew was dropped
    for path, table in rules.replace.items():
        base = panel.get("base")
        points = panel.get("points")
        for mapping in [base, *(points if isinstance(points, list) else [])]:
            if isinstance(mapping, dict):
                changed = [_swapped(str(key), value, path, table) for key, value in mapping.items()]
                mapping.clear()
                mapping.update(changed)
        grid = panel.get("grid")
        if isinstance(grid, dict):
            panel["grid"] = dict(_swapped_list(str(key), found, path, table) for key, found in grid.items())
        draws = random.get("fields") if isinstance(random, dict) else None
        for key, draw in draws.items() if isinstance(draws, dict) else ():
            if isinstance(draw, dict) and isinstance(draw.get("choice"), list):
                draw["choice"] = _swapped_list(str(key), draw["choice"], path, table)[1]


def _mappings_of(panel: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The mappings of a panel whose keys are fields of a run."""
    points, random = panel.get("points"), panel.get("random")
    found = [panel.get("base"), panel.get("grid"), *(points if isinstance(points, list) else [])]
    found.append(random.get("fields") if isinstance(random, dict) else None)
    return [mapping for mapping in found if isinstance(mapping, dict)]


def _drop(mapping: dict[str, Any], path: str) -> None:
    for key in list(mapping):
        if key == path or str(key).startswith(f"{path}."):
            del mapping[key]
        elif path.startswith(f"{key}.") and isinstance(mapping[key], dict):
            _drop(mapping[key], path[len(str(key)) + 1 :])


def _swapped_list(key: str, found: Any, path: str, table: Mapping[Any, Any]) -> tuple[str, Any]:
    """A grid's values, each as if it stood alone under `key`."""
    if not isinstance(found, list):
        return key, found
    pairs = [_swapped(key, value, path, table) for value in found]
    keys = {k for k, _ in pairs}
    if len(keys) > 1:  # names beside whole components: the component stands for both
        pairs = [(path, value if k == path else {"name": value}) for k, value in pairs]
    return (pairs[0][0] if pairs else key), [value for _, value in pairs]


def _swapped(key: str, value: Any, path: str, table: Mapping[Any, Any]) -> tuple[str, Any]:
    """(key, value) with what `table` replaces at `path`, the key being dotted or the beginning of the path."""
    if key == path:
        return key, [_new(v, table) for v in value] if isinstance(value, list) else _new(value, table)
    if key == f"{path}.name":
        new = _new(value, table)
        return (key, new) if isinstance(new, str) else (path, new)
    if path.startswith(f"{key}.") and isinstance(value, dict):
        rest = path[len(key) + 1 :]
        return key, dict(_swapped(str(k), v, rest, table) for k, v in value.items())
    return key, value


def _new(value: Any, table: Mapping[Any, Any]) -> Any:
    for old, new in table.items():
        if _same(value, old) or (isinstance(value, dict) and _same(value.get("name"), old)):
            return copy.deepcopy(new)
    return value


def _same(value: Any, old: Any) -> bool:
    """Whether they are the same value; 4e-4 is a text in YAML and a number in the config."""
    if isinstance(value, bool) or isinstance(old, bool) or isinstance(value, list | dict):
        return value is old
    try:
        return float(value) == float(old)
    except (TypeError, ValueError, OverflowError):
        return value == old
