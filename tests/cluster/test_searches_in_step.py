"""A sweep that searches the times of all its models does so in step, and finds what one after the other finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_run import CT, write

from cmray.cluster.plain import PlainSweep
from cmray.cluster.results_stage import ResultsStage
from cmray.config.plan import Plan, plan_experiment
from cmray.engine.evaluator import InlinePool
from cmray.engine.searching import search_times
from cmray.engine.session import default_device, prepare_process
from cmray.tracking.noop import NoopTracker
from cmray.tracking.records import Search


class Silent:
    """An Observer that nobody looks at."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def task(self, title, done, total):
        self.titles.append(title)

    def __getattr__(self, name):
        return lambda *_: None


class Counting(InlinePool):
    """How many calls came together; interrupted after some."""

    def __init__(self, calls: int = 10**9):
        super().__init__(default_device())
        self.left, self.together = calls, []

    def run(self, calls, got=lambda *_: None):
        self.together.append([method for method, _ in calls])

        def counted(index, result):
            got(index, result)
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        return super().run(calls, counted)


def studied(folder: Path, **search: object) -> tuple[Plan, Path]:
    """A plan of two trained models, and the storage folder."""
    file = write(
        folder / "study.yaml", CT, panels={"p": {"grid": {"objective.num_sigmas": [9, 18]}}},
        evaluate={"num_samples": 64, "nfe": [1], "block": 32},
        search={"trials": "all", "nfe": [2, 3], "num_samples": 64, **search},
    )  # fmt: skip
    return plan_experiment(file, [], folder / "storage"), folder / "storage"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of the plan without results."""
    folder = tmp_path_factory.mktemp("study")
    plan, storage = studied(folder)
    prepare_process(1)
    sweep = PlainSweep(plan, storage, None, NoopTracker(), Silent())
    sweep.results = None
    sweep.run_in_session()
    return folder


def copied(trained: Path, folder: Path) -> tuple[Plan, Path, ResultsStage]:
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    plan, storage = studied(folder)
    return plan, storage, ResultsStage(plan, plan.config.evaluate, storage, Silent())


def records(plan: Plan) -> dict[tuple[str, int], Search]:
    """By model and budget, without what the clock says."""
    found = {}
    for trial in plan.trials:
        for file in (trial.folder / "searches").glob("*.json"):
            one = Search.model_validate_json(file.read_bytes()).model_copy(update={"seconds": 0.0, "time": 0.0})
            found[trial.name, one.nfe] = one
    return found


@pytest.mark.slow
def test_all_models_are_searched_in_step_and_an_interruption_changes_nothing(trained, tmp_path):
    plan, _, stage = copied(trained, tmp_path / "apart")
    references = stage._references()
    for who in stage._subjects().values():
        for nfe in (2, 3):
            search_times(who, plan.config.search, nfe, references[0], InlinePool(default_device()), 32)
    expected = records(plan)
    assert len(expected) == 4

    plan, _, stage = copied(trained, tmp_path / "together")
    interruptions, before = 0, len(list(plan.folder.parent.glob("*/*/evaluations/*.json")))
    while True:
        pool = Counting(calls=15)
        try:
            stage.run(pool, "here")
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 3
    assert records(plan) == expected
    assert stage.complete()
    made = len(list(plan.folder.parent.glob("*/*/evaluations/*.json"))) - before
    assert stage.measured == made > 0, "interruptions count nothing twice, and lose nothing"
    stage.run(Counting(), "here")
    assert stage.measured == made
    for trial in plan.trials:
        assert (trial.folder / "searches" / "search.png").is_file()
        finals = [json.loads(f.read_text())["provenance"] for f in (trial.folder / "evaluations").glob("*.json")]
        assert sorted(p["nfe"] for p in finals if p["searched"]) == [2, 3]

    plan, _, stage = copied(trained, tmp_path / "whole")
    pool = Counting()
    stage.run(pool, "here")
    assert ["measure", "measure"] in pool.together, "one candidate of either model at once"
    assert ["keep_prefix", "keep_prefix"] in pool.together
    assert any("Searching 2 sampling times of 2 models here" in title for title in stage.observer.titles)
