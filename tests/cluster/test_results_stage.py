"""What the results stage of an experiment ranks and searches by."""

import pytest
from cli_run import CD, EDM, write

from cmray.cluster.observer import Observer
from cmray.cluster.results_stage import ResultsStage, rank
from cmray.cluster.sweep import prepare_named
from cmray.config.plan import plan_experiment
from cmray.core.errors import CmrayError, ConfigError
from cmray.engine.results import Subject
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


def with_samplers(folder, *samplers):
    write(folder / "teacher.yaml", EDM)
    evaluate = {"num_samples": 64, "nfe": [1], "teacher_nfe": [35], "teacher_samplers": list(samplers)}
    file = write(folder / "study.yaml", CD, teacher={"experiment": "teacher.yaml"}, panels={"p": {}}, evaluate=evaluate)
    plan = plan_experiment(file, [], folder / "storage")
    return plan, ResultsStage(plan, plan.config.evaluate, folder / "storage", Silent())


def test_more_samplers_are_for_denoisers_alone(tmp_path):
    plan, stage = with_samplers(tmp_path, {"name": "ddim", "nfe": 10}, {"name": "edm-heun", "nfe": 9,
                                                                         "options": {"S_churn": 4}})  # fmt: skip
    stage.check()
    subjects = {t.name: Subject(t.folder, t.folder, t.run, "ema 0.9", "0" * 64) for t in plan.all_trials}
    wanted = {(m.subject.run.objective.name, m.sampler.title, m.sampler.nfe) for m in stage._measurements(subjects)}
    assert wanted == {
        ("edm", "edm-heun", 35),
        ("edm", "ddim", 10),
        ("edm", "edm-heun S_churn=4.0", 9),
        ("cd", "one-step", 1),
    }


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ({"name": "dimm", "nfe": 10}, r"evaluate\.teacher_samplers\.0\.name: unknown sampler .* did you mean 'ddim'"),
        ({"name": "multistep", "nfe": 2}, "unknown sampler of denoisers 'multistep'"),
        ({"name": "edm-heun", "nfe": 10}, "cannot take nfe 10"),
        ({"name": "ddim", "nfe": 10, "options": {"S_churn": 1}}, "sampler ddim: S_churn"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused_before_anything_is_trained(tmp_path, sampler, words):
    with pytest.raises(ConfigError if "unknown" in words else CmrayError, match=words):
        with_samplers(tmp_path, sampler)[1].check()
