"""Every field that is not a run's (those are in test_identity.py) changes something, here or in a test named here."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_run import CD, CT, EDM, write
from gaussian_truth import Gaussian
from pydantic.fields import FieldInfo

import cmray
from cmray.cluster.results_stage import ResultsStage
from cmray.cluster.sweep import _plan_record
from cmray.config.plan import Plan, plan_experiment
from cmray.config.run import RunConfig
from cmray.core import registry
from cmray.core.grids import karras_sigmas
from cmray.core.plugins import plugin_of
from cmray.core.registry import ComponentConfig
from cmray.core.rng import SampleNoise
from cmray.core.strict import Strict
from cmray.datasets import datasets
from cmray.datasets.whole import load_whole
from cmray.editing import Levels, edited, editing_tasks
from cmray.engine.candidates import search_key
from cmray.engine.cost import all_searches
from cmray.engine.references import Reference
from cmray.engine.results import Subject
from cmray.metrics.measures.base import measures
from cmray.samplers import samplers
from cmray.stopping import stopping_rules
from cmray.theory.config import TheoryNoise, load_theory
from cmray.theory.measure import _Case
from cmray.theory.truth import Mixture

TESTS = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")

#: what has a test of its own: "Class.field", or "kind.field" of components -> the file, which names the field
ELSEWHERE = {
    **{f"ImageRule.{f}": "datasets/test_images.py" for f in ("crop", "size", "channels", "background", "encoding")},
    **{f"extractor.{f}": "metrics/test_extractor_files.py"
       for f in ("path", "path_sha256", "size", "channels", "resizer", "range", "mean", "std", "key")},
    **{f"extractor.{f}": "metrics/test_extractor_inception.py" for f in ("weights", "weights_sha256")},
    **{f"dataset.{f}": "datasets/test_known_sources.py" for f in ("source", "split")},
    "dataset.labels": "datasets/test_image_sources.py",
    **{f"source.{f}": "exchange/test_exchange_openai.py" for f in ("image_size", "qkv_order")},
    "source.net": "exchange/test_exchange_edm.py",
    "stopping rule.metric": "config/test_stopping_section.py",
    **{f"measure.{m.split('.')[1]}": "metrics/test_measures_contract.py"
       for m in ("kid.subset_size", "kid.subsets", "is.splits", "precision.k", "fd-infinity.points")},
    **{f"Rules.{f}": "config/test_overlay.py" for f in ("replace", "drop")},
    **{f"MixtureConfig.{f}": "theory/test_theory.py" for f in ("means", "stds", "shares")},
    **{f"TheoryConfig.{f}": "theory/test_theory.py" for f in ("data", "noise", "solvers", "intervals", "nodes")},
    **{f"TheoryFile.{f}": "cli/test_cli_theory.py" for f in ("name", "description", "theory")},
}  # fmt: skip


def numbers(info: FieldInfo, value: Any) -> Any:
    """Another value of a field that has an obvious one, or that its examples name."""
    if info.examples:
        return next(example for example in info.examples if example != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.5 if value else 0.25
    raise AssertionError(f"{value!r}: say in the table, or as the field's examples, what else it can be")


# ------------------------------------------------------------------ components that no run holds

#: what a component needs for its fields to matter
NEEDS: dict[str, dict[str, Any]] = {
    "edm-heun": {"S_churn": 3.0, "S_min": 0.1, "S_max": 10.0},
    "inpaint": {"box": (2, 1, 4, 5)},
    "denoise": {"level": (2.0,)},
    "stroke": {"level": 1.5},
    "interpolate": {"frames": 3, "between": (3, 8), "level": 5.0},
}
MASK = np.eye(8, dtype=np.bool_)
#: other values where they are not obvious
OTHER: dict[str, dict[str, Any]] = {
    "sigma_min": {"sigma_min": 0.05},
    "S_min": {"S_min": 5.0},
    "S_max": {"S_max": 0.2},
    "mask": {"mask": MASK, "box": None},
    "box": {"box": (0, 0, 3, 8)},
    "word": {"word": "V", "box": None},
    "level": {"level": 3.0},
    "between": {"between": (3, 9)},
    "factor": {"factor": 2},
}


def component_fields(kind: registry.Registry[Any]) -> list[tuple[str, str]]:
    return [(n, f) for n, cls in kind.classes().items() for f in cls.model_fields if f not in ("name", "sigmas")]


def both(kind: registry.Registry[Any], name: str, field: str, **more: Any) -> tuple[Any, Any]:
    """The component, and the same with another value of that field."""
    values = {"name": name, **NEEDS.get(name, {}), **more}
    one = kind.parse(values)
    value = getattr(one, field)
    change = OTHER.get(field) or {field: numbers(type(one).model_fields[field], value)}
    return one, kind.parse({**values, **change})


@pytest.mark.parametrize(("name", "field"), component_fields(samplers))
def test_every_field_of_a_sampler_changes_the_samples(name, field):
    levels = (20.0,) if name == "one-step" else tuple(karras_sigmas(6, 0.1, 20.0).tolist())
    data = Gaussian(2.0, 0.5)  # its answers leave [-1, 1]
    out = [s.sample(data.denoise, SampleNoise(range(4), (1, 4, 4))) for s in both(samplers, name, field, sigmas=levels)]
    assert not torch.equal(*out), f"{name}: {field} reaches nothing"


@pytest.mark.parametrize("name", samplers.names())
def test_the_levels_of_a_sampler_change_the_samples(name):
    levels = [(20.0,), (19.0,)] if name == "one-step" else [(0.1, 1.0, 20.0), (0.1, 2.0, 20.0)]
    made = [samplers.parse({"name": name, "sigmas": sigmas}) for sigmas in levels]
    data = Gaussian()
    assert not torch.equal(*(s.sample(data.denoise, SampleNoise(range(4), (1, 4, 4))) for s in made))


def edit(task: Any) -> str:
    """All that a task makes of two images, as a hash."""
    levels, shape = Levels(0.002, 80.0), (3, 8, 8)
    pictures = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = task.rows(2, 1, 0)
    known = task.prepare(pictures).rows([row.image for row in rows])
    digest = hashlib.sha256()
    for times in task.schedules(levels, 8, 3, True, 2):
        sampler = samplers.parse({"name": "multistep", "sigmas": tuple(reversed(times))})
        noise = task.noise(rows, shape, CPU)
        digest.update(edited(task, Gaussian().consistency(0.002), sampler, known, noise).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("name", "field"), component_fields(editing_tasks))
def test_every_field_of_an_editing_task_changes_the_result(name, field):
    one, other = both(editing_tasks, name, field)
    assert edit(one) != edit(other), f"{name}: {field} reaches nothing"
    assert edit(one) == edit(both(editing_tasks, name, field)[0])


@pytest.mark.parametrize(("name", "field"), [f for f in component_fields(datasets) if datasets.get(f[0]).embedded])
def test_every_field_of_a_dataset_without_files_changes_its_content(name, field):
    one, other = both(datasets, name, field)
    assert load_whole(one).digest() != load_whole(other).digest(), f"{name}: {field} reaches nothing"


def judged(rule: Any) -> list[Any]:
    """Where a rule looks, and what it says there of trials that are better and better."""
    others = {str(i): dict.fromkeys(range(100, 3000, 100), 1.0 + i) for i in range(5)}
    said = [rule.verdict(step, {step: own}, dict(list(others.items())[:n])).goes_on
            for step in rule.looks(3000, 100) for own in (0.5, 2.5, 3.5) for n in range(6)]  # fmt: skip
    return [rule.looks(3000, 100), said]


@pytest.mark.parametrize(("name", "field"), [f for f in component_fields(stopping_rules) if f[1] != "metric"])
def test_every_field_of_a_stopping_rule_changes_what_it_judges(name, field):
    values = {"name": name, "grace": 100}
    one = stopping_rules.parse(values)
    change = 300 if field == "grace" else getattr(one, field) + 1
    assert judged(one) != judged(stopping_rules.parse({**values, field: change})), f"{name}: {field} reaches nothing"


# ------------------------------------------------------------------ sections of an experiment

EVALUATE = {"metric": "fd/digits", "num_samples": 64, "nfe": [1, 2], "teacher_nfe": [35], "block": 32}
SEARCH = {"nfe": [2], "num_samples": 64, "trials": "all"}

#: section, field -> what is beside it, and its other value
SECTIONS: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {
    ("evaluate", "metric"): ({}, "kid/digits"),
    ("evaluate", "metrics"): ({}, ["kid/digits"]),
    ("evaluate", "num_samples"): ({}, 96),
    ("evaluate", "repeats"): ({}, 2),
    ("evaluate", "block"): ({}, 16),
    ("evaluate", "nfe"): ({}, [1, 3]),
    ("evaluate", "teacher_nfe"): ({}, [5]),
    ("evaluate", "teacher_samplers"): ({}, [{"name": "ddim", "nfe": 4}]),
    ("evaluate", "times"): ({}, {2: [80, 0.5]}),
    ("search", "nfe"): ({}, [2, 3]),
    ("search", "num_sigmas"): ({}, 7),
    ("search", "num_samples"): ({}, 32),
    ("search", "trials"): ({}, "best"),
    ("search", "mode"): ({}, "exhaustive"),
    ("search", "parallel"): ({"mode": "section"}, 3),
    ("search", "tolerance"): ({"mode": "continuous"}, 0.5),
    ("search", "confirm_samples"): ({}, 200),
    ("report", "x"): ({}, "nimg"),
}
#: fields of an experiment's file itself, and fields of a panel
TOP: dict[str, Any] = {
    "name": "other",
    "description": "words",
    "panels": {"q": {"grid": {"seed": [4]}}},
    "stopping": {"name": "asha", "grace": 10},
    "evaluate": EVALUATE,
    "search": None,
    "report": {"x": "nimg"},
}
FIELDS_OF_RANDOM = {"train.optimizer.lr": {"uniform": [0.001, 0.1]}}
PANELS: dict[str, Any] = {
    "PanelConfig.base": {"base": {"seed": 5}},
    "PanelConfig.grid": {"grid": {"seed": [1, 2]}},
    "PanelConfig.points": {"points": [{"seed": 3}]},
    "PanelConfig.random": {"random": {"count": 2, "fields": FIELDS_OF_RANDOM}},
    "RandomConfig.count": {"random": {"count": 3, "fields": FIELDS_OF_RANDOM}},
    "RandomConfig.seed": {"random": {"count": 2, "seed": 1, "fields": FIELDS_OF_RANDOM}},
    "RandomConfig.fields": {"random": {"count": 2, "fields": {"seed": {"uniform": [0, 9], "integer": True}}}},
    "Draw.uniform": {"random": {"count": 2, "fields": {"train.optimizer.lr": {"uniform": [0.001, 0.2]}}}},
    "Draw.log_uniform": {"random": {"count": 2, "fields": {"train.optimizer.lr": {"log_uniform": [0.001, 0.1]}}}},
    "Draw.choice": {"random": {"count": 2, "fields": {"train.optimizer.lr": {"choice": [0.001, 0.1]}}}},
    "Draw.integer": {"random": {"count": 2, "fields": {"seed": {"uniform": [0, 99], "integer": True}}}},
    "Draw.digits": {"random": {"count": 2, "fields": {"train.optimizer.lr": {"uniform": [0.001, 0.1], "digits": 2}}}},
}


def planned(folder: Path, **fields: Any) -> Plan:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "teacher.yaml", EDM)
    values = {"panels": {"p": {}}, "teacher": {"experiment": "teacher.yaml"}, "name": "study", **fields}
    return plan_experiment(write(folder / "study.yaml", CD, **values), [], folder / "storage")


class Silent:
    def message(self, *_: Any) -> None: ...

    def task(self, *_: Any) -> None: ...


def all_of(plan: Plan) -> str:
    """What is trained, judged, measured, searched and shown, as far as it is decided beforehand."""
    told: list[Any] = [_plan_record(plan), [t.name for t in plan.all_trials], plan.folder.name]
    if plan.config.stopping is not None:
        told.append(plan.config.stopping.looks(40, 10))
    subjects = {t.name: Subject(t.folder, t.folder, t.run, "ema 0.9", "0" * 64) for t in plan.all_trials}
    if plan.config.evaluate is not None:
        stage = ResultsStage(plan, plan.config.evaluate, plan.folder.parent, Silent())  # pyright: ignore
        told += [
            [m.subject.folder.name, m.metric.model_dump(mode="json"), m.sampler.model_dump(mode="json"), m.num_samples,
             m.block, m.seed_blocks]
            for m in stage._measurements(subjects)
        ]  # fmt: skip
    search = plan.config.search
    if search is not None:
        reference = Reference.__new__(Reference)  # only its names count
        object.__setattr__(reference, "extractor_sha256", "1")
        object.__setattr__(reference, "sha256", "2")
        who = next(s for s in subjects.values() if s.kind == "consistency")
        told += [search_key(who, search, nfe, reference, 32) for nfe in search.nfe]
        told.append(all_searches([1.0, 2.0], search))
    return json.dumps(told, sort_keys=True, default=str).replace(str(plan.folder.parents[1]), "")


@pytest.mark.parametrize(("section", "field"), SECTIONS)
def test_every_field_of_a_section_changes_what_is_done(tmp_path, section, field):
    beside, other = SECTIONS[section, field]
    base: dict[str, Any] = {"evaluate": EVALUATE, "search": SEARCH, "report": {}}
    base[section] = {**base[section], **beside}
    changed = {**base, section: {**base[section], field: other}}
    assert all_of(planned(tmp_path / "a", **base)) != all_of(planned(tmp_path / "b", **changed))
    assert all_of(planned(tmp_path / "a", **base)) == all_of(planned(tmp_path / "c", **base))


@pytest.mark.parametrize("field", TOP)
def test_every_field_of_an_experiment_changes_what_is_done(tmp_path, field):
    base = {"evaluate": {**EVALUATE, "num_samples": 32}, "search": SEARCH}
    assert all_of(planned(tmp_path / "a", **base)) != all_of(planned(tmp_path / "b", **{**base, field: TOP[field]}))


@pytest.mark.parametrize("field", PANELS)
def test_every_field_of_a_panel_changes_its_trials(tmp_path, field):
    plain = {"random": {"count": 2, "fields": FIELDS_OF_RANDOM}}
    if field == "Draw.integer":
        plain = {"random": {"count": 2, "fields": {"seed": {"choice": [0, 99]}}}}
    base = {} if field.startswith("Panel") else plain
    names = []
    for folder, panel in (("a", base), ("b", PANELS[field])):
        file = write(tmp_path / f"{folder}.yaml", CT, panels={"p": panel})
        names.append({t.name for t in plan_experiment(file, [], tmp_path / "storage").trials})
    assert names[0] != names[1]


@pytest.mark.parametrize("field", TheoryNoise.model_fields)
def test_the_noise_of_the_theorems_decides_their_grid(field):
    config = load_theory(TESTS.parent / "experiments" / "theory.yaml", []).theory
    noise = config.noise.model_copy(update={field: getattr(config.noise, field) * 0.5})
    mixture = Mixture(config.data["Gaussian"])
    one, other = (_Case("g", mixture, c).grid(8) for c in (config, config.model_copy(update={"noise": noise})))
    assert not torch.equal(one, other)


# ------------------------------------------------------------------ and no other


def modules(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    yield name
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if info.name != "__main__":
            yield from modules(f"{name}.{info.name}")


def subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_no_field_of_any_config_is_without_a_test():
    list(modules("cmray"))
    of_runs = {"net", "objective", "solver", "distance", "schedule of N", "schedule of mu", "time sampler"}
    here = {("sampler", f) for _, f in component_fields(samplers)} | {("sampler", "sigmas")}
    here |= {("editing task", f) for _, f in component_fields(editing_tasks)}
    here |= {("stopping rule", f) for _, f in component_fields(stopping_rules)} - {("stopping rule", "metric")}
    here |= {("dataset", f) for n, f in component_fields(datasets) if datasets.get(n).embedded}
    covered = {f"{kind}.{field}" for kind, field in here} | set(ELSEWHERE) | set(PANELS)
    names = {"evaluate": "EvaluateConfig", "search": "SearchConfig", "report": "ReportConfig"}
    covered |= {f"{names[section]}.{field}" for section, field in SECTIONS}
    covered |= {f"ExperimentConfig.{field}" for field in [*TOP, *RunConfig.model_fields]}
    covered |= {f"TheoryNoise.{field}" for field in TheoryNoise.model_fields}
    covered |= {f"TeacherSampler.{field}" for field in ("name", "nfe", "options")}  # cluster/test_results_stage.py
    wanted = {
        f"{made.kind}.{field}"
        for made in registry._made
        if made.kind not in of_runs and any(made is r for r in known_registries())
        for cls in made.classes().values()
        if plugin_of(cls) is None
        for field in cls.model_fields
        if field != "name"
    }
    in_a_run = {RunConfig, *(type(None),)} | set(_models_of(RunConfig))
    for cls in subclasses(Strict):
        if issubclass(cls, ComponentConfig) or cls in in_a_run or not cls.__module__.startswith("cmray."):
            continue
        wanted |= {f"{cls.__name__}.{field}" for field in cls.model_fields}
    assert wanted - covered == set(), "say here, or in ELSEWHERE, what shows that these fields reach something"
    assert covered - wanted == set(), "these are listed, but no config has them"


def known_registries() -> list[registry.Registry[Any]]:
    """Those of cmray itself; other tests may have made some."""
    own = {m for m in registry._made if any(c.__module__.startswith("cmray.") for c in m._classes.values())}
    assert {measures, samplers, editing_tasks, datasets, stopping_rules} <= own
    return list(own)


def _models_of(cls: Any) -> Iterator[type]:
    """The groups of fields of a run, which test_identity.py walks through."""
    from typing import get_args

    for info in cls.model_fields.values():
        for part in (info.annotation, *get_args(info.annotation)):
            if isinstance(part, type) and issubclass(part, Strict) and not issubclass(part, ComponentConfig):
                yield part
                yield from _models_of(part)


@pytest.mark.parametrize("what", ELSEWHERE)
def test_the_tests_named_elsewhere_know_the_field(what):
    assert what.rpartition(".")[2] in (TESTS / ELSEWHERE[what]).read_text(), f"{ELSEWHERE[what]} does not name {what}"


def test_the_package_is_the_one_beside_these_tests():
    assert Path(cmray.__file__).parents[1] == TESTS.parent
