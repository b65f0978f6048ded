"""F2: from noise to images, each sampler in its own file."""

from cmray.samplers.base import Sampler, samplers

__all__ = ["Sampler", "samplers"]
