"""The version of cmray."""

__version__ = "0.1.0.dev0"
