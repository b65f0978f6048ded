"""Searching on a real model: what is asked in which mode, what it costs, and what an interruption or a pool changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import CPU, checkpoint, go, small

from cmray.config.data_facts import facts_of
from cmray.config.experiment import SearchConfig
from cmray.core.errors import ConfigError, StorageError
from cmray.core.rng import SEED_BASE
from cmray.datasets import datasets
from cmray.datasets.whole import load_whole, write_shards
from cmray.engine.evaluator import Evaluator, InlinePool, chunks
from cmray.engine.measure import Wanted
from cmray.engine.model import make_sampler
from cmray.engine.results import Measurement, Subject, measure_all, reference_for, subject
from cmray.engine.searching import (
    SearchOf,
    least_for_noise,
    search_grid,
    search_times,
    search_together,
    searched_measurement,
)
from cmray.samplers import samplers

WANTED = Wanted("digits", "digits", ())
MODES = {
    "ternary": {},
    "section": {},
    "section of 3": {"mode": "section", "parallel": 3},
    "exhaustive": {"num_sigmas": 9},
    "continuous": {"tolerance": 0.3},
    "reference": {},
}


class Watched(InlinePool):
    """A pool of a given size that counts what really goes through networks, and may be interrupted.

    Args:
        calls: calls after which the process is interrupted.
    """

    def __init__(self, calls: int = 10**9, size: int = 1):
        super().__init__(CPU)
        self.size, self.left, self.done, self.images, self.largest = size, calls, 0, 0, 0

    def run(self, calls, got=lambda *_: None):
        self.largest = max(self.largest, len(calls))

        def counted(index, result):
            got(index, result)
            self.done += 1
            if self.done == self.left:
                raise KeyboardInterrupt

        hook = torch.nn.modules.module.register_module_forward_hook(self._seen)
        try:
            return super().run(calls, counted)
        finally:
            hook.remove()

    def _seen(self, module, inputs, _):
        if len(inputs) == 3:  # F(x, c_noise, label)
            self.images += len(inputs[0])


def config(mode: str, **more) -> SearchConfig:
    options = {"mode": mode, "num_samples": 100, **MODES.get(mode, {}), **more}
    return SearchConfig.model_validate(options)


def whole(search):
    """A record without what the clock says."""
    return search.model_copy(update={"seconds": 0.0, "time": 0.0})


def trained(storage: Path, name: str, **changes) -> Subject:
    go(small({"train.steps": 30, "objective.num_sigmas": 18, **changes}), storage / name)
    return subject(storage / name, checkpoint(storage / name))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(subject, reference) of a small consistency model on prepared digits."""
    storage = tmp_path_factory.mktemp("storage")
    write_shards(load_whole(datasets.parse("digits")), storage / "datasets" / "digits", 2)
    who = trained(storage, "trial")
    return who, reference_for(facts_of(who.run.data, storage), "digits", storage)


@pytest.fixture
def fresh(place, tmp_path):
    """The same with a folder of its own for records."""
    who, reference = place
    return Subject(tmp_path, who.checkpoint, who.run, who.weights, who.weights_sha256), reference


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("count", [96, 70])
@pytest.mark.parametrize("labels", [False, True])
def test_going_on_from_kept_samples_gives_the_same_bits(place, tmp_path, clipped, count, labels):
    who = trained(tmp_path, "labels", **{"net.class_conditional": True}) if labels else place[0]
    evaluator, times, before = Evaluator(CPU), [80.0, 20.0, 3.0, 0.7], None
    name = {"name": "multistep", "clip_denoised": True} if clipped else None
    filled = -(-count // 32) * 32
    for nfe in (1, 2, 3, 4):
        sampler = make_sampler(who.run, nfe, times[:nfe], name)
        (task,) = chunks(who.checkpoint, sampler.model_dump(mode="json"), [WANTED], 1000, count, 32, who.weights)
        expected = evaluator.measure(task)
        assert evaluator.measure_extending(task, None)[1] == nfe * filled
        found, spent = evaluator.measure_extending(task, before)
        assert spent == filled, "one network evaluation per sample, whatever the number of times"
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key])
        kept = str(tmp_path / f"{nfe}.npz")
        assert evaluator.keep_prefix(task, kept, before) == filled
        assert evaluator.keep_prefix(task, kept, None) == filled, "what is there is not made again"
        model = evaluator._model(who.checkpoint.as_posix(), who.weights)
        images = model.images(sampler, range(1000, 1000 + count), block=32)
        with np.load(kept) as arrays:
            np.testing.assert_array_equal(arrays["samples"], images.numpy())
        before = kept


@pytest.mark.parametrize("mode", MODES)
def test_values_are_those_of_whole_samples_and_evaluations_are_counted(fresh, mode):
    who, reference = fresh
    pool, asked = Watched(), config(mode)
    found = search_times(who, asked, 3, reference, pool, block=50)
    assert found.mode == asked.mode
    assert found.nfe_spent == pool.images
    grid = search_grid(who.run, asked, 3)
    assert all(point.sigma == grid[point.index] for point in found.points)
    assert sum(found.rounds) == len(found.points)
    first, second = found.points[: found.rounds[0]], found.points[found.rounds[0] :]
    schedules = [[80.0, p.sigma] for p in first] + [[80.0, found.times[1], p.sigma] for p in second]
    measurements = [
        Measurement(who, make_sampler(who.run, len(s), s), 100, SEED_BASE["search"], 50, True) for s in schedules
    ]
    assert [p.value for p in found.points] == measure_all(measurements, reference, InlinePool(CPU))
    if mode == "reference":
        assert found.nfe_spent == 100 * (2 * len(first) + 3 * len(second)), "whole schedules, as the reference does"
    else:
        assert found.nfe_spent == 100 * (len(first) + 1 + len(second) + 1), "one a candidate, and one a fixed time"
        assert found.value == min(p.value for p in second)
    assert sorted(p.name for p in (who.folder / "searches").iterdir()) == [f"{found.key}.json"]
    assert searched_measurement(who, found, 100, 50).seed_first != SEED_BASE["search"], "reported on other seeds"


@pytest.mark.parametrize("mode", [pytest.param(m, marks=() if m == "ternary" else pytest.mark.slow) for m in MODES])
def test_an_interrupted_search_finds_the_same_and_counts_the_same(fresh, mode, tmp_path):
    who, reference = fresh
    asked = config(mode, num_samples=450)  # two chunks of 400 and 50
    expected = search_times(who, asked, 3, reference, Watched(), block=50)
    (who.folder / "searches" / f"{expected.key}.json").unlink()
    interruptions = 0
    while True:
        pool = Watched(calls=5)
        try:
            found = search_times(who, asked, 3, reference, pool, block=50)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 4
    assert whole(found) == whole(expected)
    assert found.seconds > 0
    assert search_times(who, asked, 3, reference, Watched(calls=1), block=50) == found, "it is on disk"


def test_a_pool_that_serves_more_is_asked_more_at_once(fresh):
    who, reference = fresh
    asked = config("section", num_samples=100)
    wide = Watched(size=4)
    found = search_times(who, asked, 2, reference, wide, block=50)
    assert (found.parallel, wide.largest) == (4, 4)
    large = config("section", num_samples=810)  # three chunks of 400, 400 and 10 keep three actors busy
    assert search_times(who, large, 2, reference, Watched(size=4), block=50).parallel == 1
    fixed = search_times(who, config("section", parallel=2), 2, reference, Watched(size=4), block=50)
    assert fixed.parallel == 2
    assert fixed.key != found.key


@pytest.mark.parametrize("mode", ["section", "continuous", "ternary"])
def test_an_earlier_result_of_another_pool_says_so(fresh, mode):
    who, reference = fresh
    asked = config(mode)
    first = SearchOf(who, asked, 2, reference, 1, 50)
    assert first.remark == "", "nothing is there yet"
    (found,) = search_together([first], Watched())
    assert first.remark == ""
    assert SearchOf(who, asked, 2, reference, 1, 50).remark == ""
    wider = SearchOf(who, asked, 2, reference, 4, 50)
    assert wider.finish() == found
    if mode == "ternary":
        assert wider.remark == "", "it asks the same on any pool"
    else:
        assert "measured 1 at once, and now it would be 4" in wider.remark
        assert str(wider.path) in wider.remark


def test_an_unfinished_search_of_another_pool_goes_on_and_says_so(fresh):
    who, reference = fresh
    asked = config("section")
    with pytest.raises(KeyboardInterrupt):
        search_times(who, asked, 2, reference, Watched(calls=3), block=50)
    wider = SearchOf(who, asked, 2, reference, 4, 50)
    (found,) = search_together([wider], Watched(size=4))
    assert found.parallel == 1
    assert "measured 1 at once, and now it would be 4" in wider.remark


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"search": 3}', "\xff"])
@pytest.mark.parametrize("suffix", [".json", ".state"])
def test_a_damaged_file_is_one_line(fresh, text, suffix):
    who, reference = fresh
    file = SearchOf(who, config("ternary"), 2, reference, 1, 50).path.with_suffix(suffix)
    file.parent.mkdir()
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(StorageError) as error:
        search_times(who, config("ternary"), 2, reference, Watched(), block=50)
    assert str(error.value).startswith(f"{file} cannot be read as a search: ")
    assert "\n" not in str(error.value)


def test_a_state_without_a_part_is_one_line(fresh):
    who, reference = fresh
    with pytest.raises(KeyboardInterrupt):
        search_times(who, config("ternary"), 2, reference, Watched(calls=3), block=50)
    (file,) = (who.folder / "searches").glob("*.state")
    state = json.loads(file.read_text())
    assert state["measured"]
    damaged = [{k: v for k, v in state.items() if k != left_out} for left_out in state]
    damaged += [
        {**state, "measured": [[[1], 2]]},
        {**state, "kept": 3},
        {**state, "search": {**state["search"], "nfe": 1}},
    ]
    for other in damaged:
        file.write_text(json.dumps(other))
        with pytest.raises(StorageError, match=r"\.state cannot be read as a search: it is damaged; remove it"):
            SearchOf(who, config("ternary"), 2, reference, 1, 50)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_the_least_samples_whose_noise_is_known(fresh, block):
    who, reference = fresh
    least = least_for_noise(block)
    for n in (least - 1, least):
        found = search_times(who, config("section", num_sigmas=5, num_samples=n), 2, reference, Watched(), block=block)
        unknown = [p.error is None for p in found.points if p.sigma != found.times[-1]]
        assert unknown == [n < least] * len(unknown)
        assert len(unknown) >= 2


@pytest.mark.slow
def test_several_models_are_searched_in_step(place, tmp_path):
    who, reference = place
    other = trained(tmp_path, "other", seed=5)
    asked = config("section", num_samples=450, parallel=2)
    alone = []
    for i, one in enumerate((who, other)):
        apart = Subject(tmp_path / f"alone{i}", one.checkpoint, one.run, one.weights, one.weights_sha256)
        alone.append(search_times(apart, asked, 3, reference, Watched(), block=50))
    pool, news = Watched(), []
    both = [
        Subject(tmp_path / f"both{i}", one.checkpoint, one.run, one.weights, one.weights_sha256)
        for i, one in enumerate((who, other))
    ]
    searches = [SearchOf(one, asked, 3, reference, pool.size, 50) for one in both]
    found = search_together(searches, pool, lambda search, *more: news.append((searches.index(search), *more)))
    assert [whole(s) for s in found] == [whole(s) for s in alone]
    assert pool.largest == 8, "two candidates of two chunks of either model"
    assert {i for i, *_ in news} == {0, 1}
    with pytest.raises(ValueError, match="two searches of one model"):
        search_together([searches[0], searches[0]], pool)


def test_leaders_are_confirmed_on_seeds_that_did_not_choose_them(fresh):
    who, reference = fresh
    search = SearchOf(who, config("ternary", confirm_samples=300), 2, reference, 1, 50)
    schedule = (17, 5)
    seen, again = (search.measurement((schedule, n)) for n in (100, 300))
    assert range(seen.seed_first, seen.seed_first + seen.num_samples) == range(SEED_BASE["search"], again.seed_first)
    assert again.seed_first + again.num_samples <= SEED_BASE["report"]


@pytest.mark.slow
def test_times_that_cannot_be_told_apart_are_named_and_measured_again(fresh):
    who, reference = fresh
    n = 50 * 8 * 4  # four chunks
    asked = config("continuous", tolerance=0.02, num_samples=n)
    found = search_times(who, asked, 2, reference, Watched(), block=50)
    chosen = [p for p in found.points if p.sigma == found.times[-1]]
    assert [p.error for p in chosen] == [None]
    assert not chosen[0].tied
    assert all(p.error is not None and p.error >= 0 for p in found.points if p not in chosen)
    assert found.tied, "neighbours at 2% cannot be told apart on 1,600 samples"
    assert sorted(found.tied) == sorted(p.sigma for p in found.points if p.tied)
    assert all(p.confirmed is None for p in found.points)
    far = max(found.points, key=lambda p: p.value)
    assert not far.tied

    again = search_times(who, config("continuous", tolerance=0.02, num_samples=n, confirm_samples=2 * n), 2, reference,
                         Watched(), block=50)  # fmt: skip
    assert again.key != found.key
    assert again.confirm_samples == 2 * n
    assert [p.value for p in again.points] == [p.value for p in found.points]
    leaders = [p for p in again.points if p.confirmed is not None]
    assert 2 <= len(leaders) <= 4
    best = min(leaders, key=lambda p: p.confirmed)
    assert again.times[-1] == best.sigma
    fresh_seeds = Measurement(
        who, make_sampler(who.run, 2, again.times), 2 * n, SEED_BASE["search"] + n, 50, searched=True
    )
    assert measure_all([fresh_seeds], reference, InlinePool(CPU)) == [best.confirmed]
    spent = found.nfe_spent + 2 * n * (1 + len(leaders))
    assert again.nfe_spent == spent


@pytest.mark.slow
def test_an_interrupted_confirmation_goes_on(fresh):
    who, reference = fresh
    asked = config("continuous", tolerance=0.02, num_samples=1600, confirm_samples=2000, parallel=4)
    expected = search_times(who, asked, 2, reference, Watched(), block=50)
    (who.folder / "searches" / f"{expected.key}.json").unlink()
    states = []
    while True:
        try:
            found = search_times(who, asked, 2, reference, Watched(calls=11), block=50)
            break
        except KeyboardInterrupt:
            states += [json.loads(file.read_text()) for file in (who.folder / "searches").glob("*.state")]
    again = [n for state in states for _, n, _ in state["measured"] if n == 2000]
    assert again, "interrupted while times were confirmed, too"
    assert whole(found) == whole(expected)


def test_the_grid_of_continuous_resolves_log_sigma(place):
    who, _ = place
    for tolerance in (0.5, 0.05, 0.01):
        grid = search_grid(who.run, config("continuous", tolerance=tolerance), 2)
        steps = np.diff(np.log(grid))
        assert (grid[0], grid[-1]) == (who.run.noise.sigma_min, who.run.noise.sigma_max)
        assert steps.max() <= tolerance * 1.000001
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_grids_that_cannot_be_searched_are_one_line(place):
    who, _ = place
    with pytest.raises(ConfigError, match=r"mode exhaustive tries 256 times at most, but a grid of 500 points has 498"):
        search_grid(who.run, config("exhaustive", num_sigmas=500), 2)
    assert len(search_grid(who.run, config("exhaustive", num_sigmas=258), 2)) == 258
    with pytest.raises(ConfigError, match="needs a grid of at least 21 points, but N is 18"):
        search_grid(who.run, config("ternary"), 20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "exact"}, "'ternary', 'section', 'exhaustive', 'continuous' or 'reference'"),
        ({"parallel": 2}, "parallel is 2, but mode is ternary"),
        ({"mode": "section", "tolerance": 0.1}, "tolerance is 0.1, but mode is section"),
        ({"mode": "continuous", "num_sigmas": 9}, "num_sigmas is 9, but mode continuous has no grid"),
        ({"mode": "reference", "confirm_samples": 20_000}, "mode reference measures what the reference does"),
        ({"confirm_samples": 10_000}, "confirm_samples 10000 must be more than num_samples 10000"),
    ],
)
def test_options_that_contradict_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SearchConfig.model_validate(options)


def test_samplers_of_a_search_evaluate_the_network_once_a_time(place):
    who, _ = place
    for nfe in (1, 2, 5):
        sampler = make_sampler(who.run, nfe)
        assert sampler.nfe == len(sampler.sigmas)
    assert samplers.get("multistep").of_consistency
