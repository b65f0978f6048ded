"""What the results stage of an experiment ranks and searches by."""

import pytest
from cli_run import CD, EDM, write

from cmray.cluster.observer import Observer
from cmray.cluster.results_stage import ResultsStage, rank
from cmray.cluster.sweep import prepare_named
from cmray.config.plan import plan_experiment
from cmray.tracking.records import Evaluation


class Silent(Observer):
    def message(self, text):
        pass

    def task(self, title, done, total):
        pass


@pytest.mark.parametrize("metric", ["is/digits", "kid/digits", "fd/digits"])
def test_a_search_has_a_frechet_distance_to_minimise_whatever_ranks(tmp_path, metric):
    write(tmp_path / "teacher.yaml", EDM)
    evaluate = {"metric": metric, "num_samples": 2000, "nfe": [1]}
    file = write(
        tmp_path / "study.yaml", CD, teacher={"experiment": "teacher.yaml"}, panels={"p": {}}, evaluate=evaluate,
        search={"nfe": [2]},
    )  # fmt: skip
    plan = plan_experiment(file, [], tmp_path / "storage")
    stage = ResultsStage(plan, plan.config.evaluate, tmp_path / "storage", Silent())
    stage.check()
    prepare_named(plan.trials[0].data, Silent())
    (reference,) = stage._references()
    assert (reference.extractor, reference.dataset, reference.n) == ("digits", "digits", 1797)
    assert reference.statistics.n == 1797


def test_the_best_model_has_the_lowest_rank():
    def found(value: float, better: str) -> Evaluation:
        return Evaluation.model_construct(value=value, better=better)

    assert rank(found(1.0, "lower")) < rank(found(2.0, "lower"))
    assert rank(found(2.0, "higher")) < rank(found(1.0, "higher"))
