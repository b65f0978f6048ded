"""Evaluators on threads: the bits of one evaluator alone, whatever their number."""

import threading
from contextlib import closing

import numpy as np
import pytest

from cmray.core.errors import DataError
from cmray.engine.evaluator import InlinePool, chunks
from cmray.engine.measure import Wanted
from cmray.engine.model import make_sampler
from cmray.engine.threads import ThreadPool
from tests.small_run import CPU, checkpoint, go, small


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Six chunks of a small model's samples, of different sizes and costs."""
    folder = tmp_path_factory.mktemp("threads")
    run = small({"train.steps": 3, "objective.num_sigmas": 18})
    go(run, folder)
    out = []
    for nfe, count in ((1, 300), (3, 500)):
        sampler = make_sampler(run, nfe).model_dump(mode="json")
        out += chunks(checkpoint(folder), sampler, [Wanted("d", "digits")], 7 * nfe, count, 20)
    return [("measure", (task,)) for task in out]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_number_of_threads_gives_the_bits_of_one_evaluator(calls, size):
    alone, told = InlinePool(CPU).run(calls), {}
    with closing(ThreadPool(size)) as pool:
        found = pool.run(calls, told.__setitem__)
        again = pool.run(calls[::-1])[::-1]
    assert sorted(told) == list(range(len(calls)))
    for others in (found, again, [told[i] for i in range(len(calls))]):
        for one, other in zip(alone, others, strict=True):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[name], other[name]) for name in one)


def test_what_a_call_raises_comes_out_and_calls_that_were_not_begun_are_left_out():
    begun, go_on = [], threading.Event()

    class Counting:
        def call(self, i):
            begun.append(i)
            if i == 0:
                raise DataError("a sample is not finite")
            assert go_on.wait(30)

    pool = ThreadPool(1)
    pool._idle.get()
    pool._idle.put(Counting())
    with closing(pool):
        with pytest.raises(DataError, match="not finite"):
            pool.run([("call", (i,)) for i in range(50)])
        go_on.set()
    assert len(begun) < 5


def test_the_pool_leaves_no_thread(calls):
    before = threading.active_count()
    with closing(ThreadPool(3)) as pool:
        pool.run(calls[:2])
    assert threading.active_count() == before
