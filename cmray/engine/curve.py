"""The Fréchet curve that a run draws of itself while it trains."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from cmray.config.run import CurveConfig
from cmray.core.rng import SEED_BASE
from cmray.engine.batches import TrainingData, all_images
from cmray.engine.measure import block_statistics, seed_blocks
from cmray.engine.model import make_sampler, sample_seeds
from cmray.metrics.extractors import extractors
from cmray.metrics.frechet import frechet_distance
from cmray.metrics.reference import reference_statistics
from cmray.metrics.statistics import merged

if TYPE_CHECKING:
    from cmray.engine.state import TrainState


class Curve:
    """Measures the first EMA on fixed seeds. The extractor runs on the CPU's copy of what the network made."""

    BLOCK = 256

    def __init__(self, config: CurveConfig, data: TrainingData):
        self.config = config
        self.extractor = extractors.parse(config.extractor).build(torch.device("cpu"))
        self.reference = reference_statistics(self.extractor, all_images(data))

    def measure(self, state: TrainState) -> dict[str, float]:
        """{"fd/digits@1": value, ...}. Does not touch the state's random numbers or gradients."""
        denoise = state.ema_denoiser()
        out = {}
        own = state.run.objective.own_nfe  # a distilled model is right for one number of steps
        for nfe in self.config.nfe if own is None else (own,):
            sampler = make_sampler(state.run, nfe)

            generate = partial(
                sample_seeds,
                denoise,
                sampler,
                shape=state.shape,
                num_classes=state.num_classes,
                device=state.session.device,
            )
            blocks = seed_blocks(SEED_BASE["curve"], self.config.num_samples, self.BLOCK)
            statistics = merged([block_statistics(generate, self.extractor, seeds) for seeds in blocks])
            out[f"{self.config.metric_name}@{nfe}"] = frechet_distance(statistics, self.reference)
        return out
