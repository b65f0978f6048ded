"""One pass over samples that serves every number that is wanted of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmray.config.identity import content_hash
from cmray.core.rng import derive_seed
from cmray.engine.evaluator import SampleTask, chunks
from cmray.engine.measure import Wanted, side
from cmray.engine.parts import folder_for
from cmray.engine.references import Reference
from cmray.metrics.measures.base import Estimate, Sample

if TYPE_CHECKING:
    from cmray.engine.results import Measurement


@dataclass
class Pass:
    """The samples of one block of seeds of a measurement, and of all measurements that want the same ones.

    Args:
        first: its first seed.
        users: (index of a measurement, which of its blocks of seeds this is).
        wanted: what they need of the samples, by the extractor's key.
    """

    like: Measurement
    first: int
    users: list[tuple[int, int]] = field(default_factory=list)
    wanted: dict[str, Wanted] = field(default_factory=dict)
    _sides: dict[str, Sample] = field(default_factory=dict)

    @property
    def samples(self) -> dict[str, Any]:
        """What the samples depend on."""
        m = self.like
        return {
            "weights": m.subject.weights_sha256,
            "checkpoint": str(m.subject.checkpoint),
            "sampler": m.sampler.model_dump(mode="json"),
            "seeds": [self.first, m.num_samples, m.block],
        }

    @property
    def folder(self) -> Path:
        """For what its chunks give."""
        names = {name for one in self.wanted.values() for name in one.arrays()}
        return folder_for(self.like.subject.folder / "evaluations" / "parts", content_hash(self.samples)[:16], names)

    def add(self, index: int, block: int, measurement: Measurement, reference: Reference) -> None:
        self.users.append((index, block))
        needs = set(measurement.wanted(reference).measure.needs)
        known = self.wanted.get(reference.key)
        needs |= set(known.needs) if known else set()
        self.wanted[reference.key] = Wanted(reference.key, reference.build, tuple(sorted(needs)))

    def chunks(self, keep_parts: bool) -> list[SampleTask]:
        m = self.like
        return chunks(
            m.subject.checkpoint,
            m.sampler.model_dump(mode="json"),
            list(self.wanted.values()),
            self.first,
            m.num_samples,
            m.block,
            m.subject.weights,
            self.folder if keep_parts else None,
        )

    def estimate(
        self, measurement: Measurement, reference: Reference, arrays: Callable[[], Iterable[dict[str, Any]]]
    ) -> Estimate:
        """Of the arrays of all its chunks in order. Raises DataError where the measure refuses them."""
        spec = measurement.wanted(reference)
        if reference.key not in self._sides:
            self._sides[reference.key] = side(arrays(), self.wanted[reference.key])
        against = reference.sample if spec.measure.needs_reference else None
        return spec.measure.estimate(self._sides[reference.key], against, derive_seed("measure", self.first))

    def close(self) -> None:
        """Lets go of what it holds in memory."""
        self._sides.clear()


def passes_of(measurements: Sequence[Measurement], references: Sequence[Reference]) -> list[Pass]:
    """In the order of the measurements."""
    found: dict[str, Pass] = {}
    for index, (m, reference) in enumerate(zip(measurements, references, strict=True)):
        for block in range(m.seed_blocks):
            one = Pass(m, m.seed_first + block * m.num_samples)
            one = found.setdefault(content_hash(one.samples), one)
            one.add(index, block, m, reference)
    return list(found.values())
