"""What extractors say of images, block by block, so that any number of processes gets the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cmray.core.errors import DataError
from cmray.core.precond import to_pixels
from cmray.metrics.extractors import Extractor
from cmray.metrics.measures.base import Sample
from cmray.metrics.statistics import FeatureStatistics, merged

#: seeds -> float images [-1, 1] [N,C,H,W]
Generate = Callable[[Sequence[int]], torch.Tensor]
#: longest features of which the statistics of every block are kept; of longer ones it is those of a whole chunk
FINE_DIM = 512


@dataclass(frozen=True)
class Wanted:
    """What is wanted of images beside the statistics of an extractor's features. Plain, so that it travels.

    Args:
        key: names its arrays among those of other extractors.
        extractor: a registered name, or a mapping of the name and its options.
        needs: of "features", "probabilities", "spatial".
    """

    key: str
    extractor: Any
    needs: tuple[str, ...] = ()

    def arrays(self) -> set[str]:
        """Names of the arrays that hold it."""
        names = {"n", "sum", "outer"}
        names |= {"spatial_n", "spatial_sum", "spatial_outer"} if "spatial" in self.needs else set()
        names |= {"features", "probabilities"} & set(self.needs)
        return {f"{self.key}.{name}" for name in names}


def seed_blocks(first: int, count: int, block: int) -> list[range]:
    """The seeds first .. first+count-1 in fixed blocks; the unit of work and of rounding."""
    return [range(start, min(start + block, first + count)) for start in range(first, first + count, block)]


def pixels_of(generate: Generate, seeds: Sequence[int]) -> torch.Tensor:
    """uint8 [N,C,H,W]. Raises DataError, with their number and the first seed, when some samples are not finite."""
    images = generate(seeds)
    wrong = (~images.isfinite()).flatten(1).any(1)
    bad = int(wrong.sum())
    if bad:  # as pixels they would look like black
        first = seeds[int(wrong.nonzero()[0])]
        raise DataError(
            f"{bad} of {len(seeds)} samples hold NaN or infinite values (the first has seed {first}): "
            f"the model has diverged"
        )
    return to_pixels(images)


def block_statistics(generate: Generate, extractor: Extractor, seeds: Sequence[int]) -> FeatureStatistics:
    """Feature statistics of one block of samples. Raises DataError, with their number, when some are not finite."""
    statistics = FeatureStatistics(extractor.dim)
    statistics.update(extractor(pixels_of(generate, seeds).to(extractor.device)))
    return statistics


class Gathered:
    """What one extractor said of the blocks of a chunk.

    Args:
        fine: whether the statistics of long features too are kept block by block, for a piece of a chunk.
    """

    def __init__(self, extractor: Extractor, wanted: Wanted, fine: bool = False):
        self.extractor, self.wanted, self.fine = extractor, wanted, fine
        self._statistics: dict[str, list[FeatureStatistics]] = {"": []}
        self._rows: dict[str, list[np.ndarray]] = {}

    def add(self, images: torch.Tensor) -> None:
        """One block of images, uint8 [B,C,H,W]. Raises DataError where they or the needs do not fit the extractor."""
        said = self.extractor.extract(images.to(self.extractor.device), {"features", *self.wanted.needs})
        self._add_statistics("", said.features)
        for name, rows in (("features", said.features), ("probabilities", said.probabilities)):
            if name in self.wanted.needs and rows is not None:
                self._rows.setdefault(name, []).append(rows.cpu().numpy())
        if "spatial" in self.wanted.needs and said.spatial is not None:
            self._add_statistics("spatial_", said.spatial)

    def _add_statistics(self, prefix: str, rows: torch.Tensor) -> None:
        own = FeatureStatistics(rows.shape[1])
        own.update(rows)
        add_groups(self._statistics.setdefault(prefix, []), [own], self.fine)

    def arrays(self) -> dict[str, np.ndarray]:
        out = {}
        for prefix, groups in self._statistics.items():
            out |= stacked(prefix, groups)
        out |= {name: np.concatenate(rows) for name, rows in self._rows.items()}
        return {f"{self.wanted.key}.{name}": array for name, array in out.items()}


def add_groups(groups: list[FeatureStatistics], more: Sequence[FeatureStatistics], fine: bool) -> None:
    """Adds the statistics of further blocks of a chunk to those of the blocks before: those of long features into one,
    unless `fine`."""
    for own in more:
        if groups and own.dim > FINE_DIM and not fine:
            groups[-1].merge(own)
        else:
            groups.append(own)


def stacked(prefix: str, groups: Sequence[FeatureStatistics]) -> dict[str, np.ndarray]:
    """n [G], sum [G, D] and outer [G, D, D]; what `groups_in` reads."""
    return {
        f"{prefix}n": np.array([g.n for g in groups], np.int64),
        f"{prefix}sum": np.stack([g.sum for g in groups]),
        f"{prefix}outer": np.stack([g.outer for g in groups]),
    }


def side(parts: Iterable[Mapping[str, np.ndarray]], wanted: Wanted) -> Sample:
    """One side of a comparison from the arrays of its chunks, in their order; one chunk is held at a time."""
    blocks: list[FeatureStatistics] = []
    spatial: list[FeatureStatistics] = []
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("features", "probabilities") if name in wanted.needs}
    for part in parts:
        blocks += groups_in(part, f"{wanted.key}.")
        spatial += groups_in(part, f"{wanted.key}.spatial_") if "spatial" in wanted.needs else []
        for name, found in rows.items():
            found.append(part[f"{wanted.key}.{name}"])
    statistics = merged(blocks)
    whole = {name: np.concatenate(found) for name, found in rows.items()}
    return Sample(
        statistics.n,
        blocks,
        statistics,
        whole.get("features"),
        whole.get("probabilities"),
        spatial or None,
        merged(spatial) if spatial else None,
    )


def groups_in(arrays: Mapping[str, np.ndarray], prefix: str = "") -> list[FeatureStatistics]:
    """The statistics that arrays n [G], sum [G, D] and outer [G, D, D] hold; [] where there are none."""
    if f"{prefix}n" not in arrays:
        return []
    n, total, outer = (arrays[f"{prefix}{name}"] for name in ("n", "sum", "outer"))
    return [FeatureStatistics.from_arrays({"n": n[i], "sum": total[i], "outer": outer[i]}) for i in range(len(n))]
