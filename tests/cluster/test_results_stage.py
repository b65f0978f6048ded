"""What the results stage of an experiment ranks and searches by."""

import pytest
from cli_run import CD, EDM, write

from cmray.cluster.observer import Observer
from cmray.cluster.results_stage import ResultsStage, rank
from cmray.cluster.sweep import prepare_named
from cmray.config.plan import plan_experiment
from cmray.core.errors import ConfigError
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


def test_confirming_without_knowing_the_noise_is_refused_before_anything_is_trained(tmp_path):
    write(tmp_path / "teacher.yaml", EDM)
    evaluate = {"num_samples": 2000, "nfe": [1], "block": 100}
    for samples in (1999, 2000):
        search = {"nfe": [2], "num_samples": samples, "confirm_samples": 4000}
        file = write(
            tmp_path / "study.yaml", CD, teacher={"experiment": "teacher.yaml"}, panels={"p": {}}, evaluate=evaluate,
            search=search,
        )  # fmt: skip
        plan = plan_experiment(file, [], tmp_path / "storage")
        stage = ResultsStage(plan, plan.config.evaluate, tmp_path / "storage", Silent())
        if samples == 2000:
            stage.check()
        else:
            with pytest.raises(ConfigError, match=r"search\.num_samples 1,999; it takes 2,000 or more"):
                stage.check()


def test_the_best_model_has_the_lowest_rank():
    def found(value: float, better: str) -> Evaluation:
        return Evaluation.model_construct(value=value, better=better)

    assert rank(found(1.0, "lower")) < rank(found(2.0, "lower"))
    assert rank(found(2.0, "higher")) < rank(found(1.0, "higher"))
