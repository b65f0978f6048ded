"""Searches of sampling times, several models at once on one pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cmray.config.experiment import SearchConfig
from cmray.core.rng import SEED_BASE
from cmray.engine.candidates import Measured, Question, SearchOf, read_search, search_grid, search_key, search_path
from cmray.engine.evaluator import BLOCKS_PER_CHUNK, Call, Pool, SampleTask
from cmray.engine.model import make_sampler
from cmray.engine.results import Measurement, Reference, Subject, measure_all
from cmray.metrics.measures.base import Estimate
from cmray.search.noise import MAX_GROUPS, MIN_GROUPS
from cmray.tracking.records import Search

#: its checkpoint and weights
Model = tuple[str, str | None]

__all__ = [
    "SearchOf",
    "least_for_noise",
    "read_search",
    "search_grid",
    "search_key",
    "search_path",
    "search_times",
    "search_together",
    "searched_measurement",
]


def search_times(
    who: Subject,
    config: SearchConfig,
    nfe: int,
    reference: Reference,
    pool: Pool,
    block: int,
    progress: Callable[[int, float, float], None] = lambda *_: None,
) -> Search:
    """The paper's greedy search of `nfe` sampling times; a search that is on disk is returned as it is.

    All candidates see the same seeds, which no reported number uses.

    Args:
        progress: called with (evaluations so far, noise level, value).
    """
    search = SearchOf(who, config, nfe, reference, pool.size, block)
    (found,) = search_together([search], pool, lambda _, *news: progress(*news))
    return found


def search_together(
    searches: Sequence[SearchOf],
    pool: Pool,
    progress: Callable[[SearchOf, int, float, float], None] = lambda *_: None,
) -> list[Search]:
    """Searches of different models, in step: what all of them want to know next is measured on the pool together.

    Args:
        progress: called with (search, its evaluations so far, noise level, value).

    Raises:
        ValueError: two searches of one model.
    """
    if len({_model(s.who) for s in searches}) < len(searches):
        raise ValueError("two searches of one model do not run together; give the second one after the first")
    while open_ := [(search, questions) for search in searches if (questions := search.wanted())]:
        _keep_prefixes(open_, pool)
        for reference in {_side(s): s.reference for s, _ in open_}.values():
            alike = [(s, q) for s, q in open_ if _side(s) == (reference.key, reference.sha256)]
            _measure(alike, reference, pool, progress)
    return [search.finish() for search in searches]


def searched_measurement(who: Subject, found: Search, num_samples: int, block: int) -> Measurement:
    """The searched times, on the seeds that are reported."""
    sampler = make_sampler(who.run, found.nfe, found.times)
    return Measurement(who, sampler, num_samples, SEED_BASE["report"], block, searched=True)


def least_for_noise(block: int) -> int:
    """The fewest samples of a candidate whose noise is known: whole chunks of blocks, the last one at least half."""
    chunk = block * BLOCKS_PER_CHUNK
    return (MIN_GROUPS - 1) * chunk + chunk // 2


def _side(search: SearchOf) -> tuple[str, str]:
    return search.reference.key, search.reference.sha256


def _keep_prefixes(open_: Sequence[tuple[SearchOf, list[Question]]], pool: Pool) -> None:
    calls = [(search, call) for search, questions in open_ for call in search.prefix_calls(questions)]
    if calls:
        pool.run([call for _, call in calls], lambda i, spent: calls[i][0].kept_prefix(calls[i][1][1][1], spent))
    for search, questions in open_:
        search.forget_prefixes(questions)


def _measure(
    open_: Sequence[tuple[SearchOf, list[Question]]],
    reference: Reference,
    pool: Pool,
    progress: Callable[[SearchOf, int, float, float], None],
) -> None:
    asked = [(search, question) for search, questions in open_ for question in questions]
    measurements = [search.measurement(question) for search, question in asked]
    extending = _Extending(pool, {_model(search.who): search for search, _ in open_})

    def keep(i: int, estimates: list[Estimate]) -> None:
        (search, question), (estimate,) = asked[i], estimates
        value = estimate.value
        parts = extending.taken(measurements[i])
        groups = _group_values(measurements[i], parts, reference)
        search.learned(question, Measured(value, groups, sum(part.spent for part in parts)))
        progress(search, len(search.evaluations), float(search.grid[question[0][-1]]), value)

    measure_all(measurements, reference, extending, keep=keep)


@dataclass(frozen=True)
class _Part:
    """One chunk of a candidate, measured."""

    task: SampleTask
    result: Any
    spent: int


@dataclass
class _Extending:
    """A pool whose measurements go on from the samples that their searches kept, and count what they take."""

    pool: Pool
    searches: Mapping[Model, SearchOf]
    _parts: dict[tuple[Model, tuple[float, ...]], list[_Part]] = field(default_factory=dict)

    #: chunks are not cut into pieces: kept samples are of whole ones, and so are the groups that tell the noise
    size: int = 1

    def run(self, calls: Sequence[Call], got: Callable[[int, Any], None] = lambda *_: None) -> list[Any]:
        extended: list[Call] = []
        for method, (task, *more) in calls:
            assert method == "measure", f"a search measures, it does not {method}"
            file = self.searches[task.checkpoint, task.weights].prefix_file(task.sampler["sigmas"][1:], task)
            extended.append(("measure_extending", (task, file, *more)))

        def one(i: int, result: tuple[Any, int]) -> None:
            task = calls[i][1][0]
            key = (task.checkpoint, task.weights), tuple(task.sampler["sigmas"])
            self._parts.setdefault(key, []).append(_Part(task, *result))
            got(i, result[0])

        return [result for result, _ in self.pool.run(extended, one)]

    def taken(self, m: Measurement) -> list[_Part]:
        """The parts of a measurement that is complete, in order of their seeds; they are not kept any longer."""
        parts = self._parts.pop((_model(m.subject), m.sampler.sigmas))
        return sorted(parts, key=lambda part: part.task.first_seed)

    def close(self) -> None:
        self.pool.close()


def _model(who: Subject) -> Model:
    return str(who.checkpoint), who.weights


@dataclass
class _Replay:
    """A pool that has measured everything already."""

    results: Mapping[tuple[int, int], Any]  # by first seed and count
    size: int = 1

    def run(self, calls: Sequence[Call], got: Callable[[int, Any], None] = lambda *_: None) -> list[Any]:
        results = [self.results[task.first_seed, task.count] for _, (task, *_) in calls]
        for i, result in enumerate(results):
            got(i, result)
        return results

    def close(self) -> None:
        pass


def _group_values(m: Measurement, parts: Sequence[_Part], reference: Reference) -> tuple[float, ...]:
    """The metric on groups of a measurement's chunks; none where there are too few to say anything of its noise."""
    groups = [[parts[i] for i in some] for some in np.array_split(np.arange(len(parts)), min(len(parts), MAX_GROUPS))]
    sizes = [sum(part.task.count for part in group) for group in groups]
    # a metric of fewer samples has another bias and more noise
    kept = [(group, n) for group, n in zip(groups, sizes, strict=True) if 2 * n >= sizes[0]]
    if len(kept) < MIN_GROUPS:
        return ()
    wanted = [replace(m, seed_first=group[0].task.first_seed, num_samples=n) for group, n in kept]
    replay = _Replay({(part.task.first_seed, part.task.count): part.result for part in parts})
    return tuple(measure_all(wanted, reference, replay))
