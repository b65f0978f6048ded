"""Frozen networks that turn images into features. One file per extractor, found by the registry."""

from cmray.metrics.extractors.base import Extractor, ExtractorConfig, Outputs, extractors

__all__ = ["Extractor", "ExtractorConfig", "Outputs", "extractors"]
