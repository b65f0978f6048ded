"""Search of sampling times: candidates measured on the pool, kept as records."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmray.config.experiment import SearchConfig
from cmray.config.identity import content_hash
from cmray.config.run import RunConfig
from cmray.core.errors import ConfigError
from cmray.core.files import write_atomic
from cmray.core.grids import karras_sigmas
from cmray.core.rng import SEED_BASE
from cmray.engine.evaluator import Pool
from cmray.engine.model import make_sampler
from cmray.engine.results import Measurement, Reference, Subject, measure_all
from cmray.search import GreedySearch
from cmray.tracking.records import Search, SearchPoint


def search_grid(run: RunConfig, config: SearchConfig, nfe: int) -> np.ndarray:
    """The ascending grid that is searched: the one the model was last trained on, unless the config gives another N.

    Raises:
        ConfigError: the grid has too few points for the budget.
    """
    count = config.num_sigmas or run.objective.search_num_sigmas(run.train.steps)
    if count < nfe + 1:
        raise ConfigError(f"search.nfe {nfe} needs a grid of at least {nfe + 1} points, but N is {count}")
    return karras_sigmas(count, run.noise.sigma_min, run.noise.sigma_max, run.noise.rho)


def search_key(who: Subject, config: SearchConfig, nfe: int, reference: Reference, block: int) -> str:
    what: dict[str, Any] = {
        "weights": who.weights_sha256,
        "nfe": nfe,
        "num_sigmas": len(search_grid(who.run, config, nfe)),
        "num_samples": config.num_samples,
        **({} if config.mode == "exact" else {"mode": config.mode}),
        "extractor": reference.extractor_sha256,
        "reference": reference.sha256,
        "block": block,
    }
    return content_hash(what)[:16]


def search_path(who: Subject, key: str) -> Path:
    return who.folder / "searches" / f"{key}.json"


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
    key = search_key(who, config, nfe, reference, block)
    path = search_path(who, key)
    if path.is_file():
        return Search.model_validate_json(path.read_text())
    grid = search_grid(who.run, config, nfe)
    unfinished = path.with_suffix(".state")  # what an interrupted search has measured already
    search = GreedySearch(len(grid), nfe, config.mode)
    if unfinished.is_file():
        search = GreedySearch.from_state(json.loads(unfinished.read_text()))
    began = time.monotonic()

    def candidate(schedule: Sequence[int]) -> Measurement:
        times = [float(grid[i]) for i in schedule]
        return Measurement(
            who, make_sampler(who.run, len(times), times), config.num_samples, SEED_BASE["search"], block, searched=True
        )

    while schedules := search.ask():
        values = measure_all([candidate(s) for s in schedules], reference, pool)
        for schedule, value in zip(schedules, values, strict=True):
            search.tell(schedule, value)
            progress(len(search.points), float(grid[schedule[-1]]), value)
        write_atomic(unfinished, json.dumps(search.state()))
    best, value = search.best
    found = Search(
        key=key,
        nfe=nfe,
        times=[float(grid[i]) for i in best],
        value=value,
        points=[SearchPoint(index=s[-1], sigma=float(grid[s[-1]]), value=v) for s, v in search.points],
        rounds=search.rounds,
        provenance=candidate(best).provenance(reference),
        seconds=time.monotonic() - began,
        time=time.time(),
    )
    write_atomic(path, found.model_dump_json(indent=1))
    unfinished.unlink(missing_ok=True)
    return found


def searched_measurement(who: Subject, found: Search, num_samples: int, block: int) -> Measurement:
    """The searched times, on the seeds that are reported."""
    sampler = make_sampler(who.run, found.nfe, found.times)
    return Measurement(who, sampler, num_samples, SEED_BASE["report"], block, searched=True)
