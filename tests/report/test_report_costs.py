"""Costs: what the records tell, shared time counted once, missing numbers missing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_factory import decay, evaluation, experiment, result, search, teacher, trial

from cmray.report.costs import TOTAL, costs


def measured(seconds: float, time: float):
    return evaluation(1.0, time).model_copy(update={"seconds": seconds})


def searched(seconds: float, time: float):
    return search((1, 0.5, 2.0)).model_copy(update={"seconds": seconds, "time": time})


def test_training_as_recorded_and_in_units_that_people_use():
    counted = result(800, 90.0).model_copy(
        update={"gpu_seconds": 7200.0, "cpu_seconds": 1800.0, "energy_joules": 1.8e6}
    )
    frame = costs(experiment(trial("a", result=counted), trial("b", result=result(200, 30.0))))
    assert frame.loc["a"].drop(["evaluation_seconds", "search_seconds"]).to_dict() == {
        "steps": 800, "images": 800 * 128, "minutes": 1.5, "gpu_hours": 2.0, "cpu_hours": 0.5, "energy_kwh": 0.5
    }  # fmt: skip
    assert math.isnan(frame.loc["b", "gpu_hours"])
    total = frame.loc[TOTAL]
    assert (total.steps, total.images, total.minutes, total.gpu_hours) == (1000, 1000 * 128, 2.0, 2.0)


def test_an_older_record_tells_less_and_an_unfinished_trial_what_it_has():
    running = trial("b", status="running", events=decay(9, 1, 3))
    frame = costs(experiment(trial("a"), running, trial("c", status="waiting")))
    assert frame["gpu_hours"].isna().all()
    assert frame["energy_kwh"].isna().all()
    assert frame["search_seconds"].isna().all()
    assert frame["steps"].tolist()[:2] == [800, 300]
    assert frame["steps"].isna().tolist() == [False, False, True, False]
    assert frame.loc[TOTAL, "steps"] == 1100
    assert frame.loc[TOTAL, "images"] == 1100 * 128
    assert math.isnan(frame.loc["b", "minutes"])


def test_nothing_at_all():
    frame = costs(experiment())
    assert frame.index.tolist() == [TOTAL]
    assert frame.isna().all().all()


def test_evaluations_that_began_together_count_their_time_once():
    """Three numbers of two models on one pool, the clock running from the stage's beginning."""
    one = trial("a", evaluations=[measured(4.0, 104.0), measured(10.0, 110.0)])
    two = trial("b", evaluations=[measured(7.0, 107.0)])
    frame = costs(experiment(one, two))
    assert frame["evaluation_seconds"].to_dict() == {"a": 7.0, "b": 3.0, TOTAL: 10.0}


def test_evaluations_one_after_the_other_add_up_and_searches_are_apart():
    one = trial("a", evaluations=[measured(4.0, 104.0), measured(6.0, 110.0)], searches=[searched(9.0, 130.0)])
    frame = costs(experiment(teacher(), one))
    assert frame.loc["a", "evaluation_seconds"] == 10.0
    assert frame.loc[TOTAL, "search_seconds"] == 9.0
    assert frame.index.tolist() == ["edm teacher", "a", TOTAL]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(1, 15)), min_size=1, max_size=12))
def test_the_total_is_the_time_that_anything_ran(spans):
    found = [[measured(float(n), float(start + n)) for t, start, n in spans if t == who] for who in range(4)]
    trials = [trial(str(who), evaluations=own) for who, own in enumerate(found)]
    frame = costs(experiment(*trials))
    busy = {second for _, start, length in spans for second in range(start, start + length)}
    assert frame.loc[TOTAL, "evaluation_seconds"] == pytest.approx(len(busy))
    assert (frame["evaluation_seconds"].dropna() >= 0).all()
