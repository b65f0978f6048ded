"""Overlays: merged over a file, with rules that reach what panels say, or one line that says what is wrong."""

from pathlib import Path

import pytest
import yaml
from small_run import SMALL

from cmray.config.load import load_raw, merged
from cmray.config.plan import Plan, plan_experiment
from cmray.core.errors import CmrayError, ConfigError

EXP = merged(
    SMALL,
    {
        "name": "exp",
        "objective": {"distance": "l2"},
        "panels": {
            "grid": {"grid": {"objective.distance": ["l2", "linf"], "objective.num_sigmas": [5, 9]}},
            "base": {"base": {"objective": {"distance": {"name": "linf"}}, "train": {"steps": 100}}},
            "points": {"points": [{"objective.distance": "linf", "train.steps": 100}, {"objective": {"mu": 0.5}}]},
        },
    },
)


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, values: dict) -> Path:
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    write("exp.yaml", EXP)
    return write


def plan(*overlays: Path, overrides=(), file: str = "exp.yaml") -> Plan:
    return plan_experiment(Path(file), overrides, Path("storage").absolute(), overlays=overlays)


def complaint(*overlays: Path, **more) -> str:
    with pytest.raises(CmrayError) as error:
        plan(*overlays, **more)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def distances(found: Plan) -> dict[str, list[str]]:
    return {
        panel: [t.run.objective.distance.name for t in found.trials if panel in t.panels]
        for panel in found.config.panels
    }


def test_an_overlay_is_merged_over_the_file_and_under_set(at):
    over = at("small.yaml", {"train": {"steps": 4}, "noise": {"sigma_data": None}})
    assert [t.run.train.steps for t in plan(over).trials if "grid" in t.panels] == [4] * 4
    assert {t.run.train.steps for t in plan(over, overrides=["train.steps=5"]).trials} == {5, 100}
    assert plan(over).trials[0].run.noise.sigma_data == pytest.approx(0.752, abs=0.01), "the dataset's own"


def test_the_name_says_which_overlays_so_that_results_do_not_mix(at):
    one, two = at("overlays/one.yaml", {"seed": 1}), at("two.yaml", {"seed": 2})
    found = plan(one, two)
    assert found.config.name == "exp-one-two"
    assert found.folder == Path("storage").absolute() / "exp-one-two"
    assert {t.run.seed for t in found.trials} == {2}, "the last one wins"
    assert plan(one, overrides=["name=mine"]).config.name == "mine"
    assert plan().config.name == "exp"


def test_extending_an_overlay_gives_the_same_trials_under_a_name_of_its_own(at):
    over = at("overlays/small.yaml", {"train": {"steps": 4}, "replace": {"objective.distance": {"linf": "l1"}}})
    at("both.yaml", {"extends": ["exp.yaml", "overlays/small.yaml"], "name": "both"})
    both, one = plan(file="both.yaml"), plan(over)
    assert both.config.name == "both"
    assert [t.hash for t in both.trials] == [t.hash for t in one.trials]


def test_replace_reaches_grids_bases_points_and_the_experiment_itself(at):
    assert distances(plan()) == {
        "grid": ["l2", "l2", "linf", "linf"],
        "base": ["linf"],
        "points": ["linf", "l2"],
    }
    over = at("over.yaml", {"replace": {"objective.distance": {"linf": {"name": "features"}, "l2": "l1"}}})
    assert distances(plan(over)) == {
        "grid": ["l1", "l1", "features", "features"],
        "base": ["features"],
        "points": ["features", "l1"],
    }
    steps = at("steps.yaml", {"replace": {"train.steps": {100: 7, 6: 8}, "train.batch_size": {8: 16}}})
    assert {t.run.train.steps for t in plan(steps).trials} == {7, 8}
    assert {t.run.train.batch_size for t in plan(steps).trials} == {16}


def test_set_has_the_last_word_over_replace(at):
    over = at("over.yaml", {"replace": {"objective.distance": {"l2": "l1"}}})
    assert distances(plan(over, overrides=["objective.distance=l2"]))["points"] == ["linf", "l2"]


def test_replace_takes_values_in_any_spelling_and_elements_of_lists(at):
    at("exp.yaml", merged(EXP, {"train": {"optimizer": {"lr": "1e-2"}, "ema": [0.9, 0.99]}}))
    over = at("over.yaml", {"replace": {"train.optimizer.lr": {0.01: 0.5}, "train.ema": {"9e-1": 0.5}}})
    (first, *_) = plan(over).trials
    assert first.run.train.optimizer.lr == 0.5
    assert first.run.train.ema == (0.5, 0.99)
    at("exp.yaml", merged(EXP, {"data": {"flip": True}}))
    over = at("over.yaml", {"replace": {"data.flip": {1: False}}})
    assert plan(over).trials[0].run.data.flip is True, "a number is no truth value"


def test_replace_reaches_a_name_given_by_itself_and_the_choices_of_draws(at):
    panels = {
        "grid": {"grid": {"objective.distance.name": ["linf", "l2"]}},
        "base": None,
        "points": None,
        "draws": {"random": {"count": 3, "fields": {"objective.distance": {"choice": ["linf"]}}}},
    }
    at("exp.yaml", {**EXP, "panels": {k: v for k, v in panels.items() if v}})
    over = at("over.yaml", {"replace": {"objective.distance": {"linf": "l1"}}})
    assert distances(plan(over)) == {"grid": ["l1", "l2"], "draws": ["l1"]}
    over = at("over.yaml", {"replace": {"objective.distance": {"linf": {"name": "pseudo-huber", "factor": 0.5}}}})
    assert distances(plan(over)) == {"grid": ["pseudo-huber", "l2"], "draws": ["pseudo-huber"]}


def test_drop_takes_from_panels_what_they_say_of_a_field(at):
    at(
        "exp.yaml",
        merged(
            EXP,
            {
                "panels": {
                    "grid": {"grid": {"train.optimizer.lr": [0.1, 0.2]}},
                    "base": {"base": {"net": {"width": 32}, "train": {"ema": [0.5]}}},
                    "draws": {"random": {"count": 2, "fields": {"train.optimizer.lr": {"uniform": [0.1, 0.2]}}}},
                }
            },
        ),
    )
    over = at("over.yaml", {"drop": ["net", "train.optimizer", "train.ema"]})
    found = plan(over).trials
    assert {t.run.net.width for t in found} == {16}
    assert {t.run.train.optimizer.lr for t in found} == {0.01}
    assert {t.run.train.ema for t in found} == {(0.999,)}
    assert {t.run.train.steps for t in found} == {6, 100}, "the rest of the panel stays"
    assert len(found) < len(plan().trials), "trials that have become the same run once"


def test_an_old_value_that_stands_nowhere_is_no_error(at):
    over = at("over.yaml", {"replace": {"objective.distance": {"lpips": "l1"}, "search.num_samples": {50_000: 5}}})
    found = plan(over)
    assert [t.hash for t in found.trials] == [t.hash for t in plan().trials]
    assert found.config.search is None, "a replacement makes no section"


def test_rules_are_the_same_in_whichever_order_files_are_loaded_and_files_stay_as_they_are(at):
    over = at("over.yaml", {"replace": {"objective.distance": {"l2": "l1"}}})
    first = load_raw(Path("exp.yaml"), (), [over]).values
    assert load_raw(Path("exp.yaml"), (), [over]).values == first
    assert "replace" not in first
    assert load_raw(Path("exp.yaml")).values["objective"]["distance"] == "l2"


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        (
            {"name": "x"},
            "over.yaml: an overlay has no name and no description; merged over exp.yaml the experiment is "
            "called exp-over",
        ),
        ({"trian": {}}, "over.yaml: trian: unknown key; did you mean 'train'?"),
        ({"train": {"stpes": 3}}, "over.yaml: train.stpes: unknown key; did you mean 'steps'?"),
        (
            {"replace": {"train.stpes": {1: 2}}},
            "over.yaml: replace: field 'train.stpes' does not exist: train has no 'stpes'; did you mean 'steps'?",
        ),
        ({"replace": {"objective.distence": {1: 2}}}, "objective has no 'distence'; did you mean 'distance'?"),
        ({"replace": {"objective.num_sigmas.s2": {1: 2}}}, "objective.num_sigmas has no 's2'; did you mean 's1'?"),
        ({"replace": {"panels.grid": {1: 2}}}, "an experiment has no 'panels'"),
        ({"replace": {"train.steps": 3}}, "over.yaml: replace.train.steps: must be a valid dictionary; found 3"),
        ({"drop": ["evaluate.nfe"]}, "over.yaml: drop: field 'evaluate.nfe' does not exist: an experiment has no"),
        ({"drop": "net"}, "over.yaml: drop: must be a valid tuple; found 'net'"),
        (
            {"replace": {"objective.distance": {"l2": "l9"}}},
            "over.yaml: objective.distance.name: unknown distance 'l9'; did you mean 'l2'?",
        ),
    ],
)
def test_an_overlay_that_cannot_be(at, overlay, words):
    assert words in complaint(at("over.yaml", overlay))


def test_an_overlay_that_is_not_there_or_whose_name_names_no_folder(at):
    assert complaint(Path("none.yaml")) == "experiment file none.yaml does not exist"
    assert "name 'exp-a+b' must be letters" in complaint(at("a+b.yaml", {"seed": 1}))


def test_every_field_that_rules_may_name_is_walked():
    from cmray.config.experiment import RUN_FIELDS
    from cmray.config.overlay import check_field

    for path in ("data.flip", "net.multipliers", "objective.solver.name", "teacher.overrides.train.steps", "train.ema",
                 "train.optimizer.betas", "objective.times.P_mean", "resources.workers", "curve.metric"):  # fmt: skip
        check_field(path, set(RUN_FIELDS))
    with pytest.raises(ValueError, match="no 'evaluate'"):
        check_field("evaluate.metric", set(RUN_FIELDS))


def test_overlays_of_a_file_without_a_name_leave_it_to_the_check(at):
    at("exp.yaml", {k: v for k, v in EXP.items() if k != "name"})
    with pytest.raises(ConfigError, match="name: is required"):
        plan(at("over.yaml", {"seed": 1}))


def test_what_an_anchor_repeats_is_replaced_once_in_each_place(at):
    text = yaml.safe_dump({k: v for k, v in EXP.items() if k != "panels"})
    panels = "panels:\n  a: {points: [&p {train.steps: 100, seed: 1}]}\n  b: {points: [*p]}\n"
    Path("exp.yaml").write_text(text + panels)
    found = plan(at("over.yaml", {"replace": {"train.steps": {100: 50, 50: 25}}}))
    assert [t.run.train.steps for t in found.trials] == [50]
