"""The results stage: which measurements are missing, made on the pool, kept as records."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from pydantic import ValidationError

from cmray.config.checkpoint_facts import ema_file, read_checkpoint_facts
from cmray.config.identity import content_hash
from cmray.config.metric import MetricSpec, parse_metric
from cmray.config.run import RunConfig
from cmray.core.errors import CheckpointError, DataError, StorageError
from cmray.core.files import write_atomic
from cmray.core.protocol import REFERENCE_BLOCK
from cmray.core.rng import SEED_BASE, derive_seed
from cmray.engine.evaluator import Pool
from cmray.engine.images import ImageSet
from cmray.engine.model import make_sampler
from cmray.engine.parts import InUse, read_arrays
from cmray.engine.passes import passes_of
from cmray.engine.pieces import cut, joined
from cmray.engine.references import Reference
from cmray.engine.references import reference_for as reference_for
from cmray.engine.sides import BLOCKS, Progress, described, extractor_facts
from cmray.metrics.extractors import extractors
from cmray.metrics.measures.base import Estimate
from cmray.objectives import Kind
from cmray.samplers import Sampler
from cmray.tracking.records import Evaluation, Provenance, SeedBlock

#: one, or one for each extractor
References = Reference | Sequence[Reference]


@dataclass(frozen=True)
class Subject:
    """A trained model that is to be measured."""

    folder: Path  # of the trial; records go to its evaluations/ and searches/
    checkpoint: Path
    run: RunConfig
    weights: str  # "ema 0.999" or "student"
    weights_sha256: str

    @property
    def kind(self) -> Kind:
        """How it is sampled: a denoiser, a consistency function, or a few-step denoiser."""
        return self.run.objective.kind


def subject(trial_folder: Path, checkpoint: Path, weights: str | None = None) -> Subject:
    """The model of a checkpoint, without loading it.

    Args:
        weights: "student" or "ema RATE"; by default the first EMA.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or has no such weights.
    """
    facts = read_checkpoint_facts(checkpoint)
    known = {f"ema {rate}": ema_file(rate) for rate in facts.run.train.ema}
    usual = next(iter(known))
    if "student.safetensors" in facts.files:  # imported weights are the EMA alone
        known["student"] = "student.safetensors"
    chosen = weights or usual
    if chosen not in known:
        raise CheckpointError(f"{checkpoint} has no weights '{chosen}'; it has: {', '.join(known)}")
    sha256 = facts.weights_sha256 if chosen == usual else facts.files[known[chosen]]
    return Subject(trial_folder, checkpoint, facts.run, chosen, sha256)


@dataclass(frozen=True)
class Measurement:
    """One number that is wanted: a subject, a sampler, how many seeds from where.

    Args:
        metric: None is the Fréchet distance in the features of the reference.
        seed_blocks: how many blocks of num_samples seeds are measured, one after the other.
    """

    subject: Subject
    sampler: Sampler
    num_samples: int
    seed_first: int
    block: int
    searched: bool = False
    metric: MetricSpec | None = None
    seed_blocks: int = 1

    def wanted(self, reference: Reference) -> MetricSpec:
        return self.metric or parse_metric({"measure": "fd", "extractor": reference.build})

    def provenance(self, references: References) -> Provenance:
        reference = own_reference(self, references)
        spec = self.wanted(reference)
        return Provenance(
            **compared(spec, reference),
            n=self.num_samples,
            seed_first=self.seed_first,
            seed_block=self.block,
            seed_blocks=self.seed_blocks,
            sampler=self.sampler.title,
            nfe=self.sampler.nfe,
            times=self.sampler.times,
            weights=self.subject.weights,
            weights_sha256=self.subject.weights_sha256,
            searched=self.searched,
        )

    def key(self, references: References) -> str:
        return content_hash(self.provenance(references).model_dump())[:16]

    def record_path(self, references: References) -> Path:
        return self.subject.folder / "evaluations" / f"{self.key(references)}.json"


def compared(spec: MetricSpec, reference: Reference) -> dict[str, Any]:
    """The fields of a Provenance that do not depend on the samples."""
    out: dict[str, Any] = {
        "metric": spec.name,
        "options": spec.options,
        "extractor": reference.extractor,
        "extractor_sha256": reference.extractor_sha256,
        "resizer": reference.resizer,
    }
    if not spec.measure.needs_reference:
        return {**out, "reference_sha256": "", "dataset": "", "split": "", "reference_n": 0}
    return {
        **out,
        "reference_sha256": reference.sha256,
        "dataset": reference.dataset,
        "split": reference.split,
        "reference_n": reference.n,
    }


def own_reference(measurement: Measurement, references: References) -> Reference:
    """The one in the features of the measurement's extractor."""
    if isinstance(references, Reference):
        return references
    if measurement.metric is None:
        return references[0]
    return next(r for r in references if extractors.parse(r.build) == measurement.metric.extractor)


def budgets(run: RunConfig, nfe: Sequence[int], teacher_nfe: Sequence[int]) -> Sequence[int]:
    """The numbers of network evaluations that a model of this kind is measured at."""
    if run.objective.own_nfe is not None:
        return (run.objective.own_nfe,)
    return teacher_nfe if run.objective.kind == "denoiser" else nfe


def planned(
    who: Subject,
    nfe: Sequence[int],
    times: dict[int, tuple[float, ...]],
    num_samples: int,
    block: int,
    metrics: Sequence[MetricSpec | None] = (None,),
    seed_blocks: int = 1,
) -> list[Measurement]:
    """The measurements of one model at several budgets, on the seeds that are reported."""
    samplers = [make_sampler(who.run, n, times.get(n) if who.kind == "consistency" else None) for n in nfe]
    return [
        Measurement(who, sampler, num_samples, SEED_BASE["report"], block, metric=metric, seed_blocks=seed_blocks)
        for sampler in samplers
        for metric in metrics
    ]


def is_recorded(measurement: Measurement, references: References) -> bool:
    return measurement.record_path(references).is_file()


def recorded(measurement: Measurement, references: References) -> Evaluation | None:
    """The record on disk. Raises StorageError when it is damaged."""
    path = measurement.record_path(references)
    if not path.is_file():
        return None
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StorageError(f"{path} is no Evaluation: {where}: {first['msg']}; remove it to measure again") from None


def measure_all(
    measurements: Sequence[Measurement],
    references: References,
    pool: Pool,
    progress: Callable[[int, int], None] = lambda *_: None,
    keep: Callable[[int, list[Estimate]], None] = lambda *_: None,
    keep_parts: bool = False,
) -> list[float]:
    """Values in the order given, all chunks of all measurements on the pool together.

    Measurements of the same samples (in several extractors, by several measures) share one pass over them.

    Args:
        progress: called with (finished chunks, all chunks).
        keep: called with (index of a measurement, the estimates of its blocks of seeds) as soon as they are there.
        keep_parts: whether what chunks give is kept in files until then (see `engine.parts`).

    Raises:
        DataError: a measure refused its samples; the other measurements are made and kept first.
    """
    own = [own_reference(m, references) for m in measurements]
    passes = passes_of(measurements, own)
    chunks = [(one, chunk) for one in passes for chunk in one.chunks(keep_parts)]
    tasks, owners = [], []
    calls: dict[int, list[list[int]]] = {id(one): [] for one in passes}  # of the pieces of each chunk of a pass
    for (one, _), pieces in zip(chunks, cut([chunk for _, chunk in chunks], pool.size), strict=True):
        calls[id(one)].append(list(range(len(tasks), len(tasks) + len(pieces))))
        tasks += [("measure", (piece,)) for piece in pieces]
        owners += [one] * len(pieces)
    left = {id(one): sum(map(len, calls[id(one)])) for one in passes}
    parts: dict[int, Any] = {}
    estimates: list[list[Estimate | None]] = [[None] * m.seed_blocks for m in measurements]
    refused: dict[int, DataError] = {}
    finished = 0

    def got(call: int, result: Any) -> None:
        nonlocal finished
        finished += 1
        progress(finished, len(tasks))
        one = owners[call]
        parts[call] = result
        left[id(one)] -= 1
        if left[id(one)]:
            return

        def said(call: int) -> dict[str, Any]:
            file = tasks[call][1][0].keep
            return parts[call] if file is None else read_arrays(Path(file))

        def arrays() -> Iterator[dict[str, Any]]:
            for pieces in calls[id(one)]:
                yield joined(said(i) for i in pieces)

        for index, block in one.users:
            try:
                estimates[index][block] = one.estimate(measurements[index], own[index], arrays)
            except DataError as error:
                refused.setdefault(index, error)
                continue
            if None not in estimates[index]:
                keep(index, [e for e in estimates[index] if e is not None])
        one.close()
        for i in itertools.chain(*calls[id(one)]):
            del parts[i]
        for done in passes if keep_parts else ():
            if not left[id(done)] and all(i in refused or None not in estimates[i] for i, _ in done.users):
                used.forget(done.folder)

    with InUse(one.folder for one in passes if keep_parts) as used:
        pool.run(tasks, got)
    if refused:
        raise next(iter(refused.values()))
    return [fmean(e.value for e in found if e is not None) for found in estimates]


def evaluate(
    measurements: Sequence[Measurement],
    references: References,
    pool: Pool,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:
    """Makes the measurements that are not on disk yet, each recorded as soon as it is there; returns how many."""
    missing = [m for m in measurements if not is_recorded(m, references)]
    before = time.monotonic()

    def keep(i: int, estimates: list[Estimate]) -> None:
        nonlocal before
        m, since, before = missing[i], before, time.monotonic()  # so that the seconds of all add up to the stage's
        better = m.wanted(own_reference(m, references)).measure.better
        record = evaluation(m.provenance(references), estimates, better, before - since)
        write_atomic(m.record_path(references), record.model_dump_json(indent=1))

    if missing:
        measure_all(missing, references, pool, progress, keep, keep_parts=True)
    return len(missing)


def evaluate_images(
    images: ImageSet,
    metrics: Sequence[MetricSpec],
    references: Sequence[Reference],
    storage: Path,
    pool: Pool,
    progress: Progress = lambda *_: None,
) -> list[Evaluation]:
    """Numbers of images that are there already, in the order of the metrics. What extractors say of them is kept as
    that of a reference is; records are not."""
    found, sides = [], {}
    for spec in metrics:
        began = time.monotonic()
        reference = next(r for r in references if extractors.parse(r.build) == spec.extractor)
        if reference.key not in sides:
            needs = {BLOCKS} | {need for m in metrics if m.extractor == spec.extractor for need in m.measure.needs}
            facts = extractor_facts(reference.build, images.shape)
            sides[reference.key] = described(images, reference.build, facts, storage, pool, needs, progress)
        against = reference.sample if spec.measure.needs_reference else None
        estimate = spec.measure.estimate(sides[reference.key], against, derive_seed("measure", 0))
        provenance = Provenance(
            **compared(spec, reference),
            n=images.count,
            seed_first=0,
            seed_block=REFERENCE_BLOCK,
            sampler="",
            nfe=0,
            times=[],
            weights=f"images {images}",
            weights_sha256=images.digest,
            searched=False,
        )
        found.append(evaluation(provenance, [estimate], spec.measure.better, time.monotonic() - began))
    return found


def evaluation(
    provenance: Provenance, estimates: Sequence[Estimate], better: Literal["lower", "higher"], seconds: float
) -> Evaluation:
    """The record of one number."""
    one = estimates[0]
    found = Evaluation(
        key=content_hash(provenance.model_dump())[:16],
        value=fmean(e.value for e in estimates),
        provenance=provenance,
        seconds=seconds,
        time=time.time(),
        note=one.note,
        better=better,
    )
    if len(estimates) == 1:
        return found.model_copy(update={"low": one.low, "high": one.high, "error": one.error})
    blocks = [
        SeedBlock(seed_first=provenance.seed_first + i * provenance.n, value=e.value, low=e.low, high=e.high)
        for i, e in enumerate(estimates)
    ]
    error = stdev(e.value for e in estimates) / math.sqrt(len(estimates))
    return found.model_copy(update={"blocks": blocks, "error": error})
