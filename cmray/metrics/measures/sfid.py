"""The Fréchet distance in spatial features."""

from __future__ import annotations

from typing import ClassVar, Literal

from cmray.core.errors import DataError
from cmray.metrics.measures.base import Estimate, MeasureConfig, Sample, measures
from cmray.metrics.measures.fd import frechet_estimate


@measures.register("sfid")
class SpatialFrechetDistance(MeasureConfig):
    """The Fréchet distance of spatial features, a feature map before pooling   (Nash et al., 2021, "sFID").

    Where things are in an image, which pooled features forget, counts here. Interval and note as for fd.
    """

    title: ClassVar[str] = "spatial Fréchet distance"
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    needs: ClassVar[frozenset[str]] = frozenset({"spatial"})

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        other = self.against(sample, reference)
        for side, called in ((sample, "sample"), (other, "reference")):
            if side.spatial is None:
                raise DataError(f"{self.name}: the {called} has no spatial statistics; its extractor must give them")
        assert sample.spatial is not None
        assert other.spatial is not None
        if sample.spatial.dim != other.spatial.dim:
            found = f"{sample.spatial.dim}-d spatial features in the sample, {other.spatial.dim}-d in the reference"
            raise DataError(f"{self.name}: {found}; both must come from one extractor")
        return frechet_estimate(sample.spatial_blocks or [sample.spatial], sample.spatial, other.spatial)
