"""F2: from noise to images, each sampler in its own file."""

from cmray.samplers.base import Moment, Sampler, samplers

__all__ = ["Moment", "Sampler", "samplers"]
