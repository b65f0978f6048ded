"""The results stage: which measurements are missing, made on the pool, kept as records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmray.config.checkpoint_facts import ema_file, read_checkpoint_facts
from cmray.config.data_facts import DataFacts
from cmray.config.identity import content_hash
from cmray.config.run import RunConfig
from cmray.core.files import write_atomic
from cmray.core.rng import SEED_BASE
from cmray.datasets.manifest import read_manifest
from cmray.datasets.shards import iterate
from cmray.datasets.verified import verify_once
from cmray.engine.evaluator import Pool, chunks, merge_chunks
from cmray.engine.model import make_sampler
from cmray.metrics.extractors import Extractor, extractors
from cmray.metrics.frechet import frechet_distance
from cmray.metrics.reference import reference_statistics
from cmray.metrics.statistics import FeatureStatistics
from cmray.objectives import Kind
from cmray.samplers import Sampler
from cmray.tracking.records import Evaluation, Provenance


@dataclass(frozen=True)
class Reference:
    """The side that samples are measured against: the statistics of a dataset in an extractor's features."""

    extractor: str
    extractor_sha256: str
    statistics: FeatureStatistics
    sha256: str
    dataset: str
    split: str


def reference_for(data: DataFacts, extractor_name: str, storage: Path) -> Reference:
    """The reference statistics of a prepared dataset, from <storage>/reference/, computed where they are missing."""
    extractor: Extractor = extractors.parse(extractor_name).build(torch.device("cpu"))
    key = content_hash([data.digest, extractor_name, extractor.sha256])[:16]
    path = storage / "reference" / f"{data.name}-{extractor_name}-{key}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as arrays:
            statistics = FeatureStatistics.from_arrays(arrays)
    else:
        manifest = read_manifest(data.folder)
        verify_once(data.folder, manifest, storage / "verified")
        statistics = reference_statistics(extractor, (images for images, _ in iterate(data.folder, manifest)))
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_suffix(f".{time.time_ns()}.tmp")
        with tmp.open("wb") as file:
            np.savez(file, **statistics.to_arrays())  # type: ignore[arg-type]
        tmp.replace(path)
    return Reference(extractor_name, extractor.sha256, statistics, statistics.sha256(), data.name, data.split)


@dataclass(frozen=True)
class Subject:
    """A trained model that is to be measured."""

    folder: Path  # of the trial; records go to its evaluations/ and searches/
    checkpoint: Path
    run: RunConfig
    weights: str
    weights_sha256: str

    @property
    def kind(self) -> Kind:
        """How it is sampled: a denoiser, a consistency function, or a few-step denoiser."""
        return self.run.objective.kind


def subject(trial_folder: Path, checkpoint: Path) -> Subject:
    """The model of a checkpoint, without loading it. Raises CheckpointError."""
    facts = read_checkpoint_facts(checkpoint)
    rate = facts.run.train.ema[0]
    assert facts.weights_file == ema_file(rate)
    return Subject(trial_folder, checkpoint, facts.run, f"ema {rate}", facts.weights_sha256)


@dataclass(frozen=True)
class Measurement:
    """One number that is wanted: a subject, a sampler, how many seeds from where."""

    subject: Subject
    sampler: Sampler
    num_samples: int
    seed_first: int
    block: int
    searched: bool = False

    def provenance(self, reference: Reference) -> Provenance:
        return Provenance(
            metric=f"fd/{reference.extractor}",
            extractor=reference.extractor,
            extractor_sha256=reference.extractor_sha256,
            reference_sha256=reference.sha256,
            dataset=reference.dataset,
            split=reference.split,
            reference_n=reference.statistics.n,
            n=self.num_samples,
            seed_first=self.seed_first,
            seed_block=self.block,
            sampler=self.sampler.title,
            nfe=self.sampler.nfe,
            times=self.sampler.times,
            weights=self.subject.weights,
            weights_sha256=self.subject.weights_sha256,
            searched=self.searched,
        )

    def key(self, reference: Reference) -> str:
        return content_hash(self.provenance(reference).model_dump())[:16]

    def record_path(self, reference: Reference) -> Path:
        return self.subject.folder / "evaluations" / f"{self.key(reference)}.json"


def budgets(run: RunConfig, nfe: Sequence[int], teacher_nfe: Sequence[int]) -> Sequence[int]:
    """The numbers of network evaluations that a model of this kind is measured at."""
    if run.objective.own_nfe is not None:
        return (run.objective.own_nfe,)
    return teacher_nfe if run.objective.kind == "denoiser" else nfe


def planned(
    who: Subject, nfe: Sequence[int], times: dict[int, tuple[float, ...]], num_samples: int, block: int
) -> list[Measurement]:
    """The measurements of one model at several budgets, on the seeds that are reported."""
    samplers = [make_sampler(who.run, n, times.get(n) if who.kind == "consistency" else None) for n in nfe]
    return [Measurement(who, sampler, num_samples, SEED_BASE["report"], block) for sampler in samplers]


def is_recorded(measurement: Measurement, reference: Reference) -> bool:
    return measurement.record_path(reference).is_file()


def recorded_value(measurement: Measurement, reference: Reference) -> float:
    """The value on disk; infinite where there is none."""
    path = measurement.record_path(reference)
    return Evaluation.model_validate_json(path.read_text()).value if path.is_file() else math.inf


def measure_all(
    measurements: Sequence[Measurement],
    reference: Reference,
    pool: Pool,
    progress: Callable[[int, int], None] = lambda *_: None,
    keep: Callable[[int, float], None] = lambda *_: None,
) -> list[float]:
    """Fréchet distances in the order given, all chunks of all measurements on the pool together.

    Args:
        progress: called with (finished chunks, all chunks).
        keep: called with (index of a measurement, its value) as soon as its own chunks are there.
    """
    tasks, owners = [], []
    for i, m in enumerate(measurements):
        sampler = m.sampler.model_dump(mode="json")
        for task in chunks(m.subject.checkpoint, sampler, reference.extractor, m.seed_first, m.num_samples, m.block):
            tasks.append(("measure", (task,)))
            owners.append(i)
    parts: dict[int, dict[int, Any]] = {i: {} for i in range(len(measurements))}
    values = [math.nan] * len(measurements)
    finished = 0

    def got(call: int, result: Any) -> None:
        nonlocal finished
        finished += 1
        progress(finished, len(tasks))
        owner = owners[call]
        parts[owner][call] = result
        if len(parts[owner]) == owners.count(owner):
            merged = merge_chunks([part for _, part in sorted(parts.pop(owner).items())])
            values[owner] = frechet_distance(merged, reference.statistics)
            keep(owner, values[owner])

    pool.run(tasks, got)
    return values


def evaluate(
    measurements: Sequence[Measurement],
    reference: Reference,
    pool: Pool,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:
    """Makes the measurements that are not on disk yet, each recorded as soon as it is there; returns how many."""
    missing = [m for m in measurements if not is_recorded(m, reference)]
    began = time.monotonic()

    def keep(i: int, value: float) -> None:
        m = missing[i]
        record = Evaluation(
            key=m.key(reference),
            value=value,
            provenance=m.provenance(reference),
            seconds=time.monotonic() - began,
            time=time.time(),
        )
        write_atomic(m.record_path(reference), record.model_dump_json(indent=1))

    if missing:
        measure_all(missing, reference, pool, progress, keep)
    return len(missing)
