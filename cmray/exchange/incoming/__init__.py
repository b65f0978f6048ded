"""Formats that weights come from, each in its own file."""
