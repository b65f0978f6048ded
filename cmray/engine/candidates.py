"""The search of one model's sampling times: which candidates it wants measured, what it learned, its record."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmray.config.experiment import SearchConfig
from cmray.config.identity import content_hash
from cmray.config.run import RunConfig
from cmray.core.errors import ConfigError, StorageError
from cmray.core.files import write_atomic
from cmray.core.grids import karras_sigmas
from cmray.core.rng import SEED_BASE
from cmray.engine.evaluator import Call, SampleTask, chunks
from cmray.engine.model import make_sampler
from cmray.engine.results import Measurement, Reference, Subject
from cmray.search import EXHAUSTIVE_LIMIT, GreedySearch
from cmray.search.noise import Value, leaders, standard_error
from cmray.tracking.records import Search, SearchPoint

#: how finely mode continuous resolves log sigma unless the config says
TOLERANCE = 0.05
#: at most so many times of one round are measured again on more samples
MAX_LEADERS = 4

Schedule = tuple[int, ...]
#: a schedule, and its number of samples: candidates are measured again on more
Question = tuple[Schedule, int]


def search_grid(run: RunConfig, config: SearchConfig, nfe: int) -> np.ndarray:
    """The ascending grid that is searched: the one the model was last trained on, unless the config gives another N.

    Mode continuous makes its own, even in log sigma and as fine as its tolerance.

    Raises:
        ConfigError: the grid has too few points for the budget, or too many to try them all.
    """
    low, high = run.noise.sigma_min, run.noise.sigma_max
    if config.mode == "continuous":
        count = max(nfe, math.ceil(math.log(high / low) / (config.tolerance or TOLERANCE))) + 1
        grid = np.geomspace(low, high, count)
        grid[0], grid[-1] = low, high
        return grid
    count = config.num_sigmas or run.objective.search_num_sigmas(run.train.steps)
    if count < nfe + 1:
        raise ConfigError(f"search.nfe {nfe} needs a grid of at least {nfe + 1} points, but N is {count}")
    if config.mode == "exhaustive" and count - nfe > EXHAUSTIVE_LIMIT:
        raise ConfigError(
            f"search.mode exhaustive tries {EXHAUSTIVE_LIMIT} times at most, but a grid of {count} points has "
            f"{count - nfe}; give search.num_sigmas or use mode section"
        )
    return karras_sigmas(count, low, high, run.noise.rho)


def search_key(who: Subject, config: SearchConfig, nfe: int, reference: Reference, block: int) -> str:
    options = {"parallel": config.parallel, "confirm_samples": config.confirm_samples, "tolerance": config.tolerance}
    what: dict[str, Any] = {
        "weights": who.weights_sha256,
        "nfe": nfe,
        "num_sigmas": len(search_grid(who.run, config, nfe)),
        "num_samples": config.num_samples,
        **({} if config.mode == "ternary" else {"mode": config.mode}),
        **{name: value for name, value in options.items() if value is not None},
        "extractor": reference.extractor_sha256,
        "reference": reference.sha256,
        "block": block,
    }
    return content_hash(what)[:16]


def search_path(who: Subject, key: str) -> Path:
    return who.folder / "searches" / f"{key}.json"


def read_search(path: Path) -> Search:
    """Raises StorageError when it is damaged."""
    try:
        return Search.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> StorageError:
    reason = error.strerror if isinstance(error, OSError) else "it is damaged"
    return StorageError(f"{path} cannot be read as a search: {reason}; remove it and run the command again")


@dataclass(frozen=True)
class Measured:
    """What is known of one candidate."""

    value: float
    groups: tuple[float, ...]  # the same on groups of its samples
    spent: int  # images that the network evaluated for it


class SearchOf:
    """The search of one model's times at one budget: what to measure next, and what was learned.

    Its state is on disk after every candidate; a search that is on disk as a whole is `found` at once.
    """

    def __init__(self, who: Subject, config: SearchConfig, nfe: int, reference: Reference, pool_size: int, block: int):
        self.who, self.config, self.reference, self.block = who, config, reference, block
        self.grid = search_grid(who.run, config, nfe)
        self.key = search_key(who, config, nfe, reference, block)
        self.path = search_path(who, self.key)
        self.found = read_search(self.path) if self.path.is_file() else None
        self._unfinished = self.path.with_suffix(".state")
        self._kept = self.path.with_suffix(".prefix")  # samples of the times that are held fixed
        self._measured: dict[Question, Measured] = {}
        self._kept_spent: dict[str, int] = {}
        self._seconds, self._since = 0.0, time.monotonic()
        a_candidate = len(self._chunks(make_sampler(who.run, nfe).model_dump(), config.num_samples, 0))
        self._parallel = config.parallel or max(1, pool_size // a_candidate)
        if self._unfinished.is_file():
            try:
                self._restore(json.loads(self._unfinished.read_bytes()))
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise _damaged(self._unfinished, error) from None
        else:
            self._search = GreedySearch(len(self.grid), nfe, config.mode, self._parallel, by_hand=True)

    @property
    def remark(self) -> str:
        """Says that the record is of a search that asked for more or fewer at once than this one would; else empty."""
        if self.found is None or self.config.mode not in ("section", "continuous"):
            return ""
        before, now = self.found.parallel, self._parallel
        if before == now:
            return ""
        return (
            f"this is the result of an earlier search that measured {before} at once, and now it would be {now}; "
            f"remove {self.path} to search again"
        )

    def wanted(self) -> list[Question]:
        """What is to be measured together now, all with the same times but the last; [] when the search is done."""
        search = self._search
        while self.found is None and not search.done:
            asked = [(schedule, self.config.num_samples) for schedule in search.ask()]
            if not asked:
                rivals, _ = self._judged(search.undecided)
                asked = [(s, self.config.confirm_samples) for s in rivals] if self.config.confirm_samples else []
            missing = [question for question in asked if question not in self._measured]
            if missing:
                return missing
            if search.undecided:
                search.decide(self._judged(search.undecided)[1])
                continue
            for question in asked:
                search.tell(question[0], self._measured[question].value)
        return []

    def measurement(self, question: Question) -> Measurement:
        schedule, n = question
        times = [float(self.grid[i]) for i in schedule]
        sampler = make_sampler(self.who.run, len(times), times)
        # what was told apart on few seeds by chance is not confirmed on the same ones
        first = SEED_BASE["search"] + (0 if n == self.config.num_samples else self.config.num_samples)
        return Measurement(self.who, sampler, n, first, self.block, searched=True)

    def prefix_file(self, sigmas: Sequence[float], task: SampleTask) -> str | None:
        """Where samples of a chunk at times `sigmas`, ascending, are kept; None where nothing is.

        The reference samples every schedule whole, and so does its mode: it is there to compare with.
        """
        if self.config.mode == "reference" or not sigmas:
            return None
        return str(self._kept / f"{content_hash(list(sigmas))[:16]}-{task.first_seed}-{task.count}.npz")

    def prefix_calls(self, questions: Sequence[Question]) -> list[Call]:
        """The samples that the candidates go on from and that are not there yet."""
        if self.config.mode == "reference":
            return []
        m = self.measurement(questions[0])
        times = m.sampler.times[:-1]
        sampler = make_sampler(self.who.run, len(times), times)
        calls: list[Call] = []
        for task in self._chunks(sampler.model_dump(mode="json"), m.num_samples, m.seed_first):
            file = self.prefix_file(sampler.sigmas, task)
            assert file is not None
            if Path(file).name not in self._kept_spent or not Path(file).is_file():
                calls.append(("keep_prefix", (task, file, self.prefix_file(sampler.sigmas[1:], task))))
        return calls

    def kept_prefix(self, file: str, spent: int) -> None:
        self._kept_spent[Path(file).name] = spent
        self._save()

    def forget_prefixes(self, questions: Sequence[Question]) -> None:
        """Removes kept samples of fewer times than the questions go on from."""
        current = content_hash(list(self.measurement(questions[0]).sampler.sigmas[1:]))[:16]
        for file in self._kept.glob("*.npz"):
            if not file.name.startswith(current):
                file.unlink(missing_ok=True)

    def learned(self, question: Question, measured: Measured) -> None:
        self._measured[question] = measured
        self._save()

    def finish(self) -> Search:
        if self.found is not None:
            return self.found
        search, times = self._search, lambda s: [float(self.grid[i]) for i in s]
        best, value = search.best
        points = self._points()
        self.found = Search(
            key=self.key,
            nfe=search.nfe,
            times=times(best),
            value=value,
            points=points,
            rounds=search.rounds,
            provenance=self.measurement((best, self.config.num_samples)).provenance(self.reference),
            seconds=self._seconds + time.monotonic() - self._since,
            time=time.time(),
            mode=self.config.mode,
            parallel=search.parallel,
            nfe_spent=sum(m.spent for m in self._measured.values()) + sum(self._kept_spent.values()),
            tied=[p.sigma for p in points if p.tied],
            confirm_samples=self.config.confirm_samples,
        )
        write_atomic(self.path, self.found.model_dump_json(indent=1))
        self._unfinished.unlink(missing_ok=True)
        shutil.rmtree(self._kept, ignore_errors=True)
        return self.found

    @property
    def evaluations(self) -> list[tuple[float, float]]:
        """(noise level, value) of every candidate so far."""
        return [(float(self.grid[s[-1]]), m.value) for (s, _), m in self._measured.items()]

    def _chunks(self, sampler: dict[str, Any], count: int, first: int) -> list[SampleTask]:
        return chunks(self.who.checkpoint, sampler, [], first, count, self.block, self.who.weights)

    def _values(self, schedules: Sequence[Schedule], n: int) -> dict[Schedule, Value]:
        found = {s: self._measured.get((s, n)) for s in schedules}
        return {s: Value(m.value, m.groups) for s, m in found.items() if m is not None}

    def _judged(self, points: Sequence[tuple[Schedule, float]]) -> tuple[list[Schedule], Schedule]:
        """(those that are confirmed, the winner) of a round; nobody is confirmed where one is alone at the top."""
        first = self._values([s for s, _ in points], self.config.num_samples)
        chosen = self._search.favourite
        rivals = leaders(first, chosen, MAX_LEADERS)
        if self.config.confirm_samples is None or len(rivals) == 1:
            return [], chosen
        again = self._values(rivals, self.config.confirm_samples)
        return rivals, min(again, key=lambda s: again[s].value, default=chosen)

    def _points(self) -> list[SearchPoint]:
        """Every evaluated point, with what separates it from the winner of its round."""
        out, start = [], 0
        for number, count in enumerate(self._search.rounds):
            points = self._search.points[start : start + count]
            start += count
            chosen = self._search.best[0][: number + 2]
            first = self._values([s for s, _ in points], self.config.num_samples)
            again = self._values(list(first), self.config.confirm_samples or 0)
            tied = {s for s in leaders(first, chosen) if s not in again} | set(leaders(again, chosen) if again else ())
            for schedule, value in points:
                seen = again if schedule in again else first
                out.append(
                    SearchPoint(
                        index=schedule[-1],
                        sigma=float(self.grid[schedule[-1]]),
                        value=value,
                        error=None if schedule == chosen else standard_error(seen[schedule], seen[chosen]),
                        tied=schedule in tied and schedule != chosen,
                        confirmed=again[schedule].value if schedule in again else None,
                    )
                )
        return out

    def _save(self) -> None:
        state = {
            "search": self._search.state(),
            "measured": [[list(s), n, asdict(m)] for (s, n), m in self._measured.items()],
            "kept": self._kept_spent,
            "seconds": self._seconds + time.monotonic() - self._since,
        }
        write_atomic(self._unfinished, json.dumps(state))

    def _restore(self, state: dict[str, Any]) -> None:
        self._search = GreedySearch.from_state(state["search"])
        for schedule, n, m in state["measured"]:
            self._measured[tuple(schedule), n] = Measured(float(m["value"]), tuple(map(float, m["groups"])), m["spent"])
        self._kept_spent, self._seconds = dict(state["kept"]), float(state["seconds"])
