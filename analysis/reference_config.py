"""docs/configuration.md: every field of an experiment file, and every registered component with its fields."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types as bounds_of
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from reference_text import MADE, code, plural, table, value, words

from cmray.config.experiment import (
    Draw,
    EvaluateConfig,
    ExperimentConfig,
    PanelConfig,
    RandomConfig,
    ReportConfig,
    SearchConfig,
    TeacherSampler,
)
from cmray.config.metric import MetricSpec, extractors, measures
from cmray.config.overlay import Rules
from cmray.config.resources import ResourcesConfig
from cmray.config.run import CurveConfig, DataConfig, NoiseConfig, OptimizerConfig, TeacherConfig, TrainConfig
from cmray.core.curricula import mu_schedules, num_sigmas_schedules
from cmray.core.distances import distances
from cmray.core.registry import ComponentConfig, Holds, Registry
from cmray.core.times import time_samplers
from cmray.datasets import datasets
from cmray.editing import editing_tasks
from cmray.exchange.base import sources, targets
from cmray.metrics.extractors import ExtractorConfig
from cmray.nn import nets
from cmray.objectives.base import objectives
from cmray.samplers import samplers
from cmray.solvers import solvers
from cmray.stopping import StoppingConfig, stopping_rules
from cmray.theory.config import MixtureConfig, TheoryConfig, TheoryFile, TheoryNoise

INTRODUCTION = f"""# Configuration

{MADE}

Every field of an experiment file, with its type, its bounds and its default, and every component that a field may name.
How files are merged, extended and overlaid is told in [experiments.md](experiments.md); what the methods do in
[methods.md](methods.md).

- A field is set in the file, by `--set train.steps=100`, or in a panel's `base`, `grid`, `points` and `random`.
- `null` is YAML's word for nothing. A type such as "number or null" takes it.
- A **component** is named: `solver: euler` takes its defaults, `solver: {{name: euler}}` with options says more.
- **Counts** says whether a field decides what a run computes, and so is part of the trial's name. Changing one that
  does not count trains nothing again. Of the sections only those of a run count: `evaluate`, `search`, `stopping` and
  `report` never do.
- A field, a value or a combination that cannot be is refused in one line before anything starts.
"""

#: title, config, what it is
SECTIONS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("data", DataConfig, ""),
    ("noise", NoiseConfig, ""),
    ("teacher", TeacherConfig, ""),
    ("train", TrainConfig, ""),
    ("optimizer", OptimizerConfig, "`train.optimizer`."),
    ("curve", CurveConfig, ""),
    ("resources", ResourcesConfig, ""),
    ("panels", PanelConfig, "`panels.NAME`."),
    ("random", RandomConfig, "`panels.NAME.random`."),
    ("draw", Draw, "`panels.NAME.random.fields.FIELD`."),
    ("evaluate", EvaluateConfig, ""),
    ("teacher_samplers", TeacherSampler, "An element of `evaluate.teacher_samplers`."),
    ("search", SearchConfig, ""),
    ("report", ReportConfig, ""),
    ("metric", MetricSpec, "Written MEASURE/EXTRACTOR, or {name: MEASURE/EXTRACTOR, OPTION: VALUE, extractor: {...}}."),
    ("overlays", Rules, "Beside the fields of an experiment, in a file that is merged over another."),
)

#: title, registry, which field holds one
COMPONENTS: tuple[tuple[str, Registry[Any], str], ...] = (
    ("net", nets, "The network that is trained."),
    ("objective", objectives, "What is minimised."),
    ("solver", solvers, "`objective.solver`: one step along the teacher's trajectory."),
    ("distance", distances, "`objective.distance`: d(a, b) between two images."),
    ("num_sigmas", num_sigmas_schedules, "`objective.num_sigmas`: N(k). A bare number is `fixed`."),
    ("mu", mu_schedules, "`objective.mu`: decay of the target network. A bare number is `fixed`."),
    ("times", time_samplers, "`objective.times`: how training draws noise levels."),
    ("stopping", stopping_rules, "When trials are ended early."),
    ("sampler", samplers, "`--sampler` and `evaluate.teacher_samplers`. `sigmas` follow from the budget."),
    ("measure", measures, "The first part of a metric."),
    ("extractor", extractors, "The second part of a metric."),
    ("dataset", datasets, "`data.name`, `data.dataset`, and NAME of `cmray data prepare`."),
    ("task", editing_tasks, "TASK of `cmray edit`, and the first argument of `edit` in Python."),
    ("source", sources, "SOURCE of `cmray import`."),
    ("format", targets, "`--format` of `cmray export`, which also writes `pyfunc`."),
)

#: a file for `cmray theory`
THEORY: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("theory-file", TheoryFile, ""),
    ("theory", TheoryConfig, ""),
    ("mixture", MixtureConfig, "`theory.data.NAME`."),
    ("theory-noise", TheoryNoise, "`theory.noise`."),
)

_ANCHORS: dict[type, str] = {config: title for title, config, _ in (*SECTIONS, *THEORY)}
_ANCHORS |= {ExtractorConfig: "extractor", StoppingConfig: "stopping"}
_OF_REGISTRY = {id(registry): title for title, registry, _ in COMPONENTS}


def prose(text: str) -> str:
    """Text that may hold formulas, outside of code, as Markdown shows it."""
    parts = " ".join(text.split()).split("`")
    return "`".join(p if i % 2 else p.replace("*", r"\*").replace("<", "&lt;") for i, p in enumerate(parts))


def told(config: Any) -> str:
    """The first paragraph of a docstring; the second too where the first ends in a colon."""
    paragraphs = inspect.cleandoc(config.__doc__ or "").split("\n\n")
    count = 2 if paragraphs[0].endswith(":") else 1
    return prose(" ".join(paragraphs[:count]))


def bounds(metadata: list[Any]) -> Iterator[str]:
    """What annotated-types say of a value, in words."""
    for note in metadata:
        if isinstance(note, bounds_of.Ge):
            yield f"at least {note.ge:,}"
        elif isinstance(note, bounds_of.Gt):
            yield f"above {note.gt:,}"
        elif isinstance(note, bounds_of.Le):
            yield f"at most {note.le:,}"
        elif isinstance(note, bounds_of.Lt):
            yield f"below {note.lt:,}"
        elif isinstance(note, bounds_of.MultipleOf):
            yield f"a multiple of {note.multiple_of}"
        elif isinstance(note, bounds_of.MinLen):
            yield "not empty" if note.min_length == 1 else f"{note.min_length} or more"
        elif isinstance(note, bounds_of.MaxLen):
            yield f"{note.max_length:,} or fewer"
        elif isinstance(note, FieldInfo):
            yield from bounds(note.metadata)


def kind(annotation: Any, metadata: list[Any]) -> str:
    """A field's type in words, with its bounds."""
    registry = next((note.registry for note in metadata if isinstance(note, Holds)), None)
    if registry is not None:
        return f"component [{_OF_REGISTRY[id(registry)]}](#{_OF_REGISTRY[id(registry)]})"
    within = f", {', '.join(bounds(metadata))}" if any(bounds(metadata)) else ""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(inner[0], list(inner[1:])) + within
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{_ANCHORS[annotation]}](#{_ANCHORS[annotation]})"
    if origin in (list, tuple) and (origin is list or Ellipsis in inner):
        return f"list of {plural(kind(inner[0], []))}{within}"
    if origin is dict and inner[1] is not Any:
        return f"mapping to {kind(inner[1], [])}{within}"
    if type(None) in inner:
        rest = " or ".join(dict.fromkeys(kind(part, []) for part in inner if part is not type(None)))
        return f"{rest}{within}, or `null`"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind(part, []) for part in inner)) + within
    if getattr(annotation, "__name__", "") == "ndarray":
        return "array" + within
    return words(annotation) + within


def default(field: FieldInfo) -> str:
    if field.is_required() or field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel) and not isinstance(field.default, ComponentConfig):
        return "its own defaults"
    if field.default in ((), {}, []):
        return "none"
    return value(field.default)


def counts(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("identity") is False)


def fields(config: type[BaseModel], prefix: str = "", without: frozenset[str] = frozenset()) -> str:
    known = {name: field for name, field in config.model_fields.items() if name not in without}
    if not known:
        return "It has no options."
    head, some = ["field", "type", "default", ""], not all(counts(f) for f in known.values())
    rows = []
    for name, field in known.items():
        assert field.description, f"{config.__name__}.{name} has no description"
        row = [code(prefix + name), kind(field.annotation, field.metadata), default(field), prose(field.description)]
        rows.append([*row[:3], "" if counts(field) else "no", row[3]] if some else row)
    return table([*head[:3], "counts", head[3]] if some else head, rows)


def section(title: str, config: type[BaseModel], what: str) -> str:
    where = f"{what} " if what else ""
    return f"## {title}\n\n{where}{told(config)}\n\n{fields(config)}"


def components(title: str, registry: Registry[Any], what: str) -> str:
    parts = [f"## {title}\n\n{what}"]
    for name in registry.names():
        config = registry.get(name)
        parts.append(f"### {title}: {name}\n\n{told(config)}\n\n{fields(config, without=frozenset({'name'}))}")
    return "\n\n".join(parts)


def page() -> str:
    top = (
        "## The file\n\nIts own fields. `extends: FILE`, or a list of files, is the one key that is none: what "
        f"it names is merged below.\n\n{fields(ExperimentConfig)}"
    )
    parts = [INTRODUCTION.strip(), top, *(section(*s) for s in SECTIONS), *(components(*c) for c in COMPONENTS)]
    parts.append("## Theory files\n\nWhat `cmray theory` reads: [theory.md](theory.md).")
    return "\n\n".join([*parts, *(section(*s) for s in THEORY)]) + "\n"
