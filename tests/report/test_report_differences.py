"""Configuration differences: exactly the fields that vary, however the configurations are nested."""

from hypothesis import given
from hypothesis import strategies as st
from report_factory import experiment, teacher, trial

from cmray.report.differences import differences


def of(*configs, **changes):
    trials = [trial(f"t{i}").model_copy(update={"config": config}) for i, config in enumerate(configs)]
    return differences(experiment(*trials, **changes))


def test_only_what_differs_is_a_column_in_the_order_of_the_file():
    one = {"seed": 0, "net": {"name": "mlp", "width": 16}, "train": {"steps": 10, "ema": [0.9]}}
    two = {"seed": 0, "net": {"name": "mlp", "width": 32}, "train": {"steps": 20, "ema": [0.9]}}
    frame = of(one, two)
    assert frame.to_dict("list") == {"net.width": ["16", "32"], "train.steps": ["10", "20"]}
    assert frame.index.tolist() == ["t0", "t1"]
    assert frame.index.name == "label"


def test_a_field_that_only_one_has_is_blank_elsewhere_and_null_is_blank_too():
    cd = {"objective": {"name": "cd", "solver": "heun"}, "teacher": {"identity": "a" * 64}, "grad_clip": None}
    ct = {"objective": {"name": "ct"}, "teacher": None, "grad_clip": 1.0}
    assert of(cd, ct).to_dict("index") == {
        "t0": {"objective.name": "cd", "objective.solver": "heun", "teacher.identity": "a" * 10, "grad_clip": ""},
        "t1": {"objective.name": "ct", "objective.solver": "", "teacher.identity": "", "grad_clip": "1.0"},
    }


def test_paths_are_shown_by_their_end_unless_two_ends_are_alike():
    apart = of({"data": {"path": "/a/cifar10"}}, {"data": {"path": "s3://bucket/digits"}})
    assert apart["data.path"].tolist() == ["cifar10", "digits"]
    alike = of({"data": {"path": "/a/data"}}, {"data": {"path": "/b/data"}})
    assert alike["data.path"].tolist() == ["/a/data", "/b/data"]
    hashes = of({"digest": "0" * 63 + "1"}, {"digest": "0" * 63 + "2"})
    assert len(set(hashes["digest"])) == 2


def test_teachers_are_left_out_and_a_waiting_trial_differs_in_nothing():
    waiting = trial("later", status="waiting")
    same = trial("a").model_copy(update={"config": {"seed": 1}})
    frame = differences(experiment(teacher().model_copy(update={"config": {"seed": 2}}), same, waiting))
    assert frame.shape == (2, 0)
    other = trial("b").model_copy(update={"config": {"seed": 3}})
    frame = differences(experiment(teacher(), same, other, waiting))
    assert frame["seed"].to_dict() == {"a": "1", "b": "3", "later": ""}


def test_no_trials_no_rows():
    assert differences(experiment(teacher())).empty


SCALARS = st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["heun", "euler", "/x/y", "/z/y"])
CONFIGS = st.dictionaries(st.sampled_from("abc"), SCALARS | st.dictionaries(st.sampled_from("de"), SCALARS, min_size=1),
                          min_size=1)  # fmt: skip


def look_up(config, dotted):
    for part in dotted.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return None if isinstance(config, dict) else config


@given(st.lists(CONFIGS, min_size=2, max_size=4))
def test_a_field_is_a_column_exactly_when_its_values_are_not_all_the_same(configs):
    frame = of(*configs)
    fields = {"a", "b", "c"} | {f"{x}.{y}" for x in "abc" for y in "de"}
    for field in fields:
        values = [look_up(config, field) for config in configs]
        distinct = {(type(v), v) for v in values}
        assert (field in frame.columns) == (len(distinct) > 1), field
        if field in frame.columns:
            assert len(set(frame[field])) == len(distinct)
