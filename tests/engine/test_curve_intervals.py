"""The 95% intervals of a curve's points: those of the measure, kept with the event."""

from contextlib import closing

import pytest
import torch
from small_run import digits, small

from cmray.core.rng import SEED_BASE
from cmray.engine.curve import Curve, CurvePoints
from cmray.engine.measure import seed_blocks
from cmray.engine.session import PlainSession
from cmray.engine.state import TrainState
from cmray.metrics.measures.fd import frechet_estimate
from cmray.metrics.statistics import merged
from cmray.tracking.records import Event


def started(num_samples: int) -> tuple[TrainState, Curve]:
    run = small(curve={"every": 1, "num_samples": num_samples, "nfe": [1, 2]})
    state = TrainState(run, (1, 8, 8), 10, None, PlainSession(torch.device("cpu")))
    return state, Curve(state, digits())


def test_a_point_has_the_interval_of_the_measure():
    state, curve = started(600)
    points: list[Event] = []
    with closing(CurvePoints(curve, points.append)) as measuring:
        measuring.start(state)
        measuring.wait()
    (event,) = points
    assert set(event.intervals) == set(event.metrics) == {"fd/digits@1", "fd/digits@2"}
    blocks = seed_blocks(SEED_BASE["curve"], 600, 256)
    for nfe, sampler in curve._samplers.items():
        statistics = [curve._block(sampler, seeds) for seeds in blocks]
        total = merged(statistics)
        known = frechet_estimate(statistics, total, curve._reference)
        assert event.metrics[f"fd/digits@{nfe}"] == pytest.approx(known.value)
        assert event.intervals[f"fd/digits@{nfe}"] == (pytest.approx(known.low), pytest.approx(known.high))
    assert Event.model_validate_json(event.model_dump_json()) == event


def test_one_block_of_samples_tells_no_interval():
    state, curve = started(100)
    curve.take(state)
    assert curve.measure()
    assert curve.intervals == {}
