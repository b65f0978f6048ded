"""The side that samples are measured against, and what can be refused before anything is sampled."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmray.config.data_facts import DataFacts
from cmray.config.metric import MetricSpec
from cmray.core.errors import ConfigError, DataError
from cmray.engine.evaluator import BLOCKS_PER_CHUNK, Pool
from cmray.engine.images import ImageSet, image_set_of
from cmray.engine.measure import FINE_DIM
from cmray.engine.sides import ExtractorFacts, Progress, described, extractor_facts
from cmray.metrics.extractors import extractors
from cmray.metrics.measures.base import Sample
from cmray.metrics.reference import Published
from cmray.metrics.statistics import FeatureStatistics


@dataclass(frozen=True)
class Reference:
    """What samples are measured against in one extractor's features.

    Args:
        spec: the extractor, a registered name or a mapping of the name and its options.
        statistics: of its features; of no image where nothing is compared.
        sha256: of the statistics, or of the published file.
        dataset: its name, or the name of the published file.
        sample: all that is kept of the reference; None where nothing is compared.
        n: images of the reference; None where a published file does not tell.
        published: whether it is a file of published statistics.
        note: what the extractor does to images of this shape.
    """

    extractor: str
    extractor_sha256: str
    statistics: FeatureStatistics
    sha256: str
    dataset: str
    split: str
    spec: Any = None
    sample: Sample | None = field(default=None, repr=False)
    n: int | None = 0
    published: bool = False
    resizer: str = "none"
    note: str = ""

    @property
    def key(self) -> str:
        """Names the extractor in the arrays of chunks."""
        return f"{self.extractor}-{self.extractor_sha256[:12]}"

    @property
    def build(self) -> Any:
        """What the extractor is built from in another process."""
        return self.extractor if self.spec is None else self.spec


def reference_for(
    data: DataFacts, extractor: Any, storage: Path, pool: Pool | None = None, needs: Collection[str] = ()
) -> Reference:
    """The reference of a prepared dataset, from <storage>/reference/, computed where it is missing.

    Args:
        extractor: a registered name, or a mapping of the name and its options.
        pool: where it is computed; by default in this process, on the CPU.
        needs: of "features", "probabilities", "spatial": what is wanted beside the statistics.
    """
    facts = extractor_facts(extractor, data.shape)
    return image_reference(image_set_of(data), extractor, facts, storage, pool, needs)


def image_reference(
    images: ImageSet,
    extractor: Any,
    facts: ExtractorFacts,
    storage: Path,
    pool: Pool | None = None,
    needs: Collection[str] = (),
    progress: Progress = lambda *_: None,
) -> Reference:
    """As `reference_for`, of any images."""
    sample = described(images, extractor, facts, storage, pool, needs, progress)
    return Reference(
        facts.name, facts.sha256, sample.statistics, sample.statistics.sha256(), images.name, images.split, extractor,
        sample, sample.n, False, facts.resizer, facts.note,
    )  # fmt: skip


def published_reference(published: Published, extractor: Any, facts: ExtractorFacts) -> Reference:
    """Published statistics as the reference. Raises DataError when they are of features of another length."""
    file, given = published.path.name, published.statistics
    if given.dim != facts.dim:
        raise DataError(
            f"{published.path} holds statistics of {given.dim:,}-d features, but extractor '{facts.name}' gives "
            f"{facts.dim:,}-d ones; use the extractor that it was made with"
        )
    spatial = published.spatial
    if spatial is not None and spatial.dim != facts.spatial_dim:
        spatial = None
    sample = Sample(given.n, [given], given, None, None, None if spatial is None else [spatial], spatial)
    return Reference(
        facts.name, facts.sha256, given, published.sha256, file, "published", extractor, sample, None, True,
        facts.resizer, facts.note,
    )  # fmt: skip


def no_reference(extractor: Any, facts: ExtractorFacts) -> Reference:
    """For measures that compare with nothing."""
    empty = FeatureStatistics(facts.dim)
    return Reference(facts.name, facts.sha256, empty, "", "", "", extractor, resizer=facts.resizer, note=facts.note)


@dataclass(frozen=True)
class Against:
    """What is measured against: images, published statistics, or nothing."""

    images: ImageSet | None = None
    published: Published | None = None

    @property
    def count(self) -> int | None:
        """How many images; None where that is unknown."""
        return self.images.count if self.images else None

    def __str__(self) -> str:
        return self.published.path.name if self.published else self.images.name if self.images else "nothing"


def check_metrics(metrics: Sequence[MetricSpec], against: Against, shape: Sequence[int], n: int, block: int) -> None:
    """What can be said of metrics before anything is sampled; measures check again what they are given.

    Args:
        shape: (C, H, W) of the samples.
        n, block: how many samples are measured together, in blocks of how many.

    Raises:
        ConfigError: an extractor or the reference does not have what a measure needs.
        DataError: images do not fit the extractor; too few samples or reference images for a measure's options.
    """
    if against.images is not None and against.images.shape != tuple(shape):
        ours, theirs = ("x".join(map(str, s)) for s in (shape, against.images.shape))
        raise DataError(f"the samples are {ours} (C x H x W), but {against} has images of {theirs}")
    for metric in metrics:
        facts = extractor_facts(metric.extractor.model_dump(mode="json"), shape)
        _check_needs(metric, facts, against)
        _check_sizes(metric, n, block, facts, against)


def _check_needs(metric: MetricSpec, facts: ExtractorFacts, against: Against) -> None:
    measure, published = metric.measure, against.published
    missing = measure.needs - facts.outputs
    if missing:
        raise ConfigError(
            f"{metric.name} needs {' and '.join(sorted(missing))}, but extractor '{facts.name}' offers "
            f"{', '.join(sorted(facts.outputs))} only"
        )
    if not measure.needs_reference:
        return
    if against.images is None and published is None:
        raise ConfigError(
            f"{metric.name} compares with a reference, but there is none; give --reference-data or --reference"
        )
    if published is None:
        return
    needs = set(measure.needs)
    if published.spatial is not None and published.spatial.dim == facts.spatial_dim:
        needs -= {"spatial"}
    if needs:
        held = "mu, sigma, mu_s and sigma_s" if published.spatial else "mu and sigma"
        raise ConfigError(
            f"{metric.name} needs the {' and '.join(sorted(needs))} of the reference, but {published.path} holds "
            f"{held} only; measure against images"
        )


def _check_sizes(metric: MetricSpec, n: int, block: int, facts: ExtractorFacts, against: Against) -> None:
    size = block if facts.dim <= FINE_DIM else block * BLOCKS_PER_CHUNK
    groups = n // size + (2 * (n % size) >= size)  # a shorter rest joins another
    images = against.count if metric.measure.needs_reference and against.count is not None else n
    limits = {"subset_size": min(n, images), "splits": n, "points": groups, "k": min(n, images) - 1}
    for option, most in limits.items():
        value = metric.options.get(option)
        if isinstance(value, int) and value > most:
            there = f"{n:,} samples" + (f" in {groups} blocks" if option == "points" else "")
            if option in ("subset_size", "k"):
                there += f" and {images:,} images of {against}"
            rules = type(metric.measure).model_fields[option].metadata
            least = next((rule.ge for rule in rules if hasattr(rule, "ge")), 1)
            advice = f"make it {most:,} or less" if most >= least else "it takes more of them"
            raise DataError(f"{metric.name}: {option} is {value:,}, but there are {there}; {advice}")


def references_for(
    metrics: Sequence[MetricSpec],
    against: Against,
    shape: Sequence[int],
    storage: Path,
    pool: Pool | None = None,
    progress: Progress = lambda *_: None,
) -> list[Reference]:
    """One for each extractor of the metrics, with all that their measures need of it.

    Raises:
        DataError: published statistics are of features of another length; images that cannot be read.
    """
    found = []
    for extractor in {json.dumps(m.extractor.model_dump(mode="json"), sort_keys=True): None for m in metrics}:
        spec = json.loads(extractor)
        facts = extractor_facts(spec, shape)
        comparing = [m.measure for m in metrics if m.measure.needs_reference and extractors.parse(spec) == m.extractor]
        if not comparing:
            found.append(no_reference(spec, facts))
        elif against.published is not None:
            found.append(published_reference(against.published, spec, facts))
        else:
            assert against.images is not None
            needs = {need for measure in comparing for need in measure.needs}
            found.append(image_reference(against.images, spec, facts, storage, pool, needs, progress))
    return found
