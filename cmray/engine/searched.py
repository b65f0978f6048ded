"""How a model is sampled: what is asked for, and the best times that were searched, from its records on disk."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmray.config.identity import content_hash
from cmray.core.arguments import reals, whole
from cmray.core.errors import CmrayError
from cmray.engine.candidates import read_search
from cmray.engine.model import SamplerName, make_sampler
from cmray.engine.results import Subject
from cmray.samplers import Sampler
from cmray.tracking.records import Evaluation, Provenance, Search, readable_records

#: noise levels, descending; "searched" takes the best that were recorded for the model
Times = Sequence[float] | Literal["searched"]
#: what may differ between values that are compared: how the model was sampled
_OWN = {"weights", "weights_sha256", "sampler", "nfe", "times", "searched"}


@dataclass(frozen=True)
class SearchedTimes:
    """Noise levels that a search ended in, and what they were found to be worth.

    Args:
        times: descending, the first is sigma_max.
        value: of `metric` over `n` samples: as reported on seeds of its own, else (`reported` is false, where the
            command was stopped before) on those of the search.
    """

    nfe: int
    times: tuple[float, ...]
    metric: str
    value: float
    n: int
    reported: bool


def searched_times(trial: Path, weights_sha256: str) -> dict[int, SearchedTimes]:
    """By budget, the best times that were searched for these weights; empty where none were.

    Values compare only where everything but the times agrees. Of several ways to measure, the one with reported values
    counts, then the one with the most samples, then the newest.

    Raises:
        StorageError: a record of a search is damaged.
    """
    searches = [read_search(path) for path in sorted((trial / "searches").glob("*.json"))]
    searches = [s for s in searches if s.provenance.weights_sha256 == weights_sha256]
    if not searches:
        return {}
    reported = {
        tuple(e.provenance.times): e
        for e in sorted(readable_records(trial / "evaluations", Evaluation), key=lambda e: (e.provenance.n, e.time))
        if e.provenance.searched and e.provenance.weights_sha256 == weights_sha256
    }
    return {
        nfe: _best([(s, reported.get(tuple(s.times))) for s in searches if s.nfe == nfe])
        for nfe in sorted({s.nfe for s in searches})
    }


def times_of(who: Subject, nfe: int | None) -> tuple[float, ...]:
    """The searched times of a model at a budget; at the only one that was searched where `nfe` is None.

    Raises:
        CmrayError: it has no times, none were searched at this budget, or at several and none is chosen.
        StorageError: a record of a search is damaged.
    """
    name = name_of(who)
    if who.kind != "consistency":
        raise CmrayError(f"times are searched for consistency models; {name} is a {who.kind} model, use nfe")
    known = searched_times(who.folder, who.weights_sha256)
    there = ", ".join(map(str, known))
    named = "" if who.weights == f"ema {who.run.train.ema[0]}" else f" --weights '{who.weights}'"
    search = f"`cmray search {shlex.quote(name)} --nfe {nfe or 2}{named}` searches them"
    if not known:
        raise CmrayError(f"no times were searched for {name} ({who.weights}); {search}")
    if nfe is None and len(known) > 1:
        raise CmrayError(f"times of {there} network evaluations were searched for {name}; choose one with nfe")
    chosen = next(iter(known)) if nfe is None else nfe
    if chosen not in known:
        raise CmrayError(f"no times of {nfe} network evaluations were searched for {name}, only of {there}; {search}")
    return known[chosen].times


def sampler_for(
    who: Subject, nfe: int | None = None, times: Times | None = None, name: SamplerName | None = None
) -> Sampler:
    """The sampler that a model is used with; arguments as in `TrainedModel.sample`. No weights are loaded.

    Raises:
        CmrayError: what does not fit the model or one another.
        StorageError: a record of a search is damaged.
    """
    if nfe is not None:
        nfe = whole("nfe", nfe)
    if isinstance(times, str):
        if times != "searched":
            raise CmrayError(f"times is '{times}'; give noise levels, descending, or 'searched'")
        times = times_of(who, nfe)
    if times is not None:
        times = reals("times", times)
        return make_sampler(who.run, len(times) if nfe is None else nfe, times, name)
    return make_sampler(who.run, who.run.objective.usual_nfe if nfe is None else nfe, None, name)


def name_of(who: Subject) -> str:
    """EXPERIMENT/TRIAL; of a bare checkpoint its folder."""
    return name_at(who.folder, who.checkpoint)


def name_at(folder: Path, checkpoint: Path) -> str:
    """`name_of` a model by its places."""
    return str(checkpoint) if folder == checkpoint else f"{folder.parent.name}/{folder.name}"


def _best(found: Sequence[tuple[Search, Evaluation | None]]) -> SearchedTimes:
    """The lowest value among those that were measured alike."""

    def ways(search: Search, number: Evaluation | None) -> tuple[bool, int, str]:
        p = number.provenance if number else search.provenance
        return number is not None, p.n, _protocol(p)

    newest: dict[tuple[bool, int, str], float] = {}
    for search, number in found:
        way = ways(search, number)
        newest[way] = max(newest.get(way, 0.0), search.time)
    chosen = max(newest, key=lambda way: (*way[:2], newest[way]))
    alike = [(number.value if number else s.value, s, number) for s, number in found if ways(s, number) == chosen]
    value, search, number = min(alike, key=lambda one: one[0])
    p = number.provenance if number else search.provenance
    return SearchedTimes(search.nfe, tuple(search.times), p.metric, value, p.n, number is not None)


def _protocol(p: Provenance) -> str:
    return content_hash(p.model_dump(mode="json", exclude=_OWN))
