"""Noise levels of diffusers' scheduler for consistency models, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmray.config.run import RunConfig
from cmray.core.errors import CheckpointError

CLASS, NAME = "_class_name", "CMStochasticIterativeScheduler"
#: diffusers' defaults
_DEFAULTS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}


def scheduler_config(run: RunConfig) -> dict[str, Any]:
    """The scheduler_config.json with which the pipeline's samples are those of ours.

    Ours do not clip what the network says, so it does not either. `num_train_timesteps` is the grid of the last
    training step, whose indices diffusers takes as `timesteps`.
    """
    noise = run.noise
    return {
        CLASS: NAME,
        "num_train_timesteps": run.objective.search_num_sigmas(run.train.steps),
        "sigma_min": noise.sigma_min,
        "sigma_max": noise.sigma_max,
        "sigma_data": noise.sigma_data,
        "rho": noise.rho,
        "s_noise": 1.0,
        "clip_denoised": False,
    }


def noise_fields(scheduler: Mapping[str, Any], shown: Path) -> tuple[dict[str, float], int]:
    """(fields of NoiseConfig, points of the grid). Raises CheckpointError for another scheduler."""
    if scheduler.get(CLASS) != NAME:
        raise CheckpointError(
            f"{shown}: {CLASS} is {scheduler.get(CLASS)!r}; the scheduler of a consistency model is {NAME}"
        )
    values = {field: scheduler.get(field, value) for field, value in _DEFAULTS.items()}
    count = scheduler.get("num_train_timesteps", 40)
    for field, value in {**values, "num_train_timesteps": count}.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(f"{shown}: {field} is {value!r}; it must be a number above 0")
    return {field: float(value) for field, value in values.items()}, max(2, int(count))
