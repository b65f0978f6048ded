"""The results stage in one process: what is recorded when, and what an interruption costs."""

from __future__ import annotations

import pytest
import torch
from small_run import CPU, checkpoint, go, small

from cmray.config.data_facts import facts_of
from cmray.config.experiment import SearchConfig
from cmray.core.errors import DataError
from cmray.core.rng import SEED_BASE
from cmray.datasets import datasets
from cmray.datasets.whole import load_whole, write_shards
from cmray.engine.evaluator import InlinePool
from cmray.engine.measure import block_statistics
from cmray.engine.model import make_sampler
from cmray.engine.results import (
    Measurement,
    evaluate,
    is_recorded,
    recorded,
    reference_for,
    subject,
)
from cmray.engine.searching import search_times, searched_measurement
from cmray.metrics.extractors import extractors


class CutShort(InlinePool):
    """A pool whose process is interrupted after a number of chunks; it counts what it did."""

    def __init__(self, chunks: int = 10**9):
        super().__init__(CPU)
        self.left, self.done = chunks, 0

    def run(self, calls, got=lambda *_: None):
        def counted(index, result):
            got(index, result)
            self.done += 1
            if self.done == self.left:
                raise KeyboardInterrupt

        return super().run(calls, counted)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(subject, reference) of a small consistency model on prepared digits."""
    storage = tmp_path_factory.mktemp("storage")
    run = small({"train.steps": 30, "objective.num_sigmas": 18})
    write_shards(load_whole(datasets.parse("digits")), storage / "datasets" / "digits", 2)
    go(run, storage / "trial")
    who = subject(storage / "trial", checkpoint(storage / "trial"))
    return who, reference_for(facts_of(run.data, storage), "digits", storage)


def measurements(who, seeds: int) -> list[Measurement]:
    first = SEED_BASE["report"] + seeds
    return [Measurement(who, make_sampler(who.run, nfe), 200, first, 50) for nfe in (1, 2, 3)]


def test_a_measurement_is_recorded_as_soon_as_it_is_there(place):
    who, reference = place
    wanted = measurements(who, seeds=0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(wanted, reference, CutShort(2))
    assert [is_recorded(m, reference) for m in wanted] == [True, True, False], "two of three chunks were done"
    first = recorded(wanted[0], reference).value
    rest = CutShort()
    assert evaluate(wanted, reference, rest) == 1
    assert rest.done == 1, "what was recorded is not measured again"
    assert recorded(wanted[0], reference).value == first
    assert evaluate(wanted, reference, CutShort()) == 0


def test_an_interrupted_search_goes_on_and_finds_the_same(place):
    who, reference = place
    config = SearchConfig(nfe=(3,), num_samples=100)
    whole = CutShort()
    expected = search_times(who, config, 3, reference, whole, block=50)
    (who.folder / "searches" / f"{expected.key}.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        search_times(who, config, 3, reference, CutShort(5), block=50)
    assert list((who.folder / "searches").glob("*.state")), "what was measured is kept"
    rest = CutShort()
    found = search_times(who, config, 3, reference, rest, block=50)
    assert 0 < rest.done < whole.done
    assert (found.times, found.value, found.points) == (expected.times, expected.value, expected.points)
    assert not list((who.folder / "searches").glob("*.state"))
    final = searched_measurement(who, found, 100, 50)
    assert final.seed_first != SEED_BASE["search"], "reported on other seeds"


def test_samples_that_are_not_finite_are_counted_not_measured():
    extractor = extractors.parse("digits").build(CPU)

    def generate(seeds):
        images = torch.zeros(len(seeds), 1, 8, 8)
        images[1, 0, 2, 3] = float("nan")
        return images

    with pytest.raises(DataError, match="1 of 4 samples hold NaN"):
        block_statistics(generate, extractor, range(4))
