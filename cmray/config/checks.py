"""Whether a run can be made of its data and its teacher: checks that need no training, each one sentence."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cmray.config.data_facts import DataFacts
from cmray.config.experiment import ExperimentConfig
from cmray.config.run import RunConfig
from cmray.core.errors import CmrayError, ConfigError, MissingWeightsError
from cmray.metrics.extractors import Extractor, ExtractorConfig, extractors


@dataclass
class Missing:
    """What a plan goes without, for estimates: such a plan cannot be run."""

    #: folder -> the name of the dataset that is missing there
    datasets: dict[str, str] = field(default_factory=dict)
    #: published files of weights
    files: set[str] = field(default_factory=set)
    #: files that `cmray features train` makes
    trained: set[str] = field(default_factory=set)


def check_identity(run: RunConfig, identity: str) -> None:
    """Raises ConfigError when the run names another teacher than the one there is, by content."""
    assert run.teacher is not None
    if run.teacher.identity not in (None, identity):
        raise ConfigError(f"teacher.identity is {run.teacher.identity}, but the teacher's is {identity}")


def sigma_data(run: RunConfig, facts: DataFacts) -> float:
    """The scale of the data, > 0: the run's own, or the dataset's standard deviation to six digits."""
    return run.noise.sigma_data or round(facts.std, 6)


def check_teacher_run(run: RunConfig, teacher: RunConfig, shown: str, facts: DataFacts) -> None:
    """Raises ConfigError when the model of `teacher`, called `shown`, cannot teach this run."""
    if not teacher.objective.is_denoiser:
        raise ConfigError(f"teacher {shown} has objective.name {teacher.objective.name}; a teacher is a denoiser (edm)")
    if teacher.net.class_conditional and not run.net.class_conditional:
        raise ConfigError(
            f"net.class_conditional is false, but the teacher {shown} is class-conditional and needs the labels"
        )
    if run.objective.starts_from == "teacher" and run.net.architecture() != teacher.net.architecture():
        field = "init is teacher" if hasattr(run.objective, "init") else f"name is {run.objective.name}"
        raise ConfigError(
            f"objective.{field}, which needs the teacher's net, that of {shown}, but "
            f"{_differences(run.net.architecture(), teacher.net.architecture())}"
        )
    ours, theirs = sigma_data(run, facts), sigma_data(teacher, facts)
    scales = f"noise.sigma_data is {ours} and that of {shown} is {theirs}; objective.name {run.objective.name}"
    if run.objective.replaces_teacher and ours != theirs:
        raise ConfigError(f"{scales} makes the student the next teacher, so both must be the same")
    if run.objective.starts_from == "teacher" and abs(ours / theirs - 1) > 0.05:
        raise ConfigError(f"{scales} starts from the teacher's weights, which fit only their own scale (to 5%)")


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The fields by which a student's net is not its teacher's; the name alone when they are of two kinds."""
    keys = [key for key in ours if ours[key] != theirs.get(key)] if ours["name"] == theirs["name"] else ["name"]
    return ", ".join(f"net.{key} is {ours[key]} instead of {theirs[key]}" for key in keys)


@contextmanager
def unless_missing(missing: Missing | None) -> Iterator[None]:
    """Takes down the weights that a check asks for in vain, where that is no error."""
    try:
        yield
    except MissingWeightsError as error:
        if missing is None:
            raise
        (missing.trained if error.trained else missing.files).add(error.file)


def check_against_data(run: RunConfig, facts: DataFacts, missing: Missing | None) -> None:
    """Raises CmrayError when network, loss or curve do not fit the images; MissingWeightsError as `missing` says."""
    if run.noise.sigma_data is None and round(facts.std, 6) == 0:
        raise ConfigError(f"noise.sigma_data is the data's standard deviation, which is 0 for {facts.name}; give one")
    if run.net.class_conditional and not facts.num_classes:
        raise ConfigError(f"net.class_conditional is true, but the data {facts.name} has no labels")
    if run.curve is not None:
        with unless_missing(missing):
            check_extractor(run.curve.extractor, facts, "curve.metric")
    if run.objective.features is not None:
        own = getattr(getattr(run.objective, "distance", None), "extractor", run.objective.features)
        with unless_missing(missing):
            check_extractor(own, facts, "objective.distance.extractor")
    distance = getattr(run.objective, "distance", None)
    if distance is not None:
        try:
            with unless_missing(missing):
                distance.check(facts.shape)
        except MissingWeightsError as error:
            raise MissingWeightsError(f"objective.distance: {error}", error.file) from None
        except (CmrayError, ValueError) as error:
            raise ConfigError(f"objective.distance: {error}") from None
    try:
        run.net.check(facts.shape)
    except ValueError as error:
        raise ConfigError(f"net: {error}") from None


@functools.cache
def _extractor(extractor: str) -> Extractor:
    """Of a name, or of name and options as JSON."""
    return extractors.parse(json.loads(extractor)).build(torch.device("cpu"))


def check_extractor(extractor: str | ExtractorConfig, facts: DataFacts, field_path: str) -> None:
    """Raises ConfigError when it does not take the images, MissingWeightsError when its file is not here."""
    name = extractor if isinstance(extractor, str) else extractor.name
    options = extractor if isinstance(extractor, str) else extractor.model_dump(mode="json")
    try:
        _extractor(json.dumps(options)).check(facts.shape)
    except MissingWeightsError as error:
        raise MissingWeightsError(f"{field_path} is {name}: {error}", error.file, error.trained) from None
    except CmrayError as error:
        raise ConfigError(f"{field_path} is {name}: {error}") from None


def check_times(config: ExperimentConfig, path: Path) -> None:
    """Raises ConfigError for noise levels of `evaluate.times` that the experiment does not have."""
    assert config.evaluate is not None
    for nfe, times in config.evaluate.times.items():
        if not all(config.noise.sigma_min < t <= config.noise.sigma_max for t in times):
            raise ConfigError(
                f"{path}: evaluate.times.{nfe} is {list(times)}; every time must be above noise.sigma_min "
                f"{config.noise.sigma_min} and at most noise.sigma_max {config.noise.sigma_max}"
            )
