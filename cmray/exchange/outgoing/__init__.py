"""Formats that models go to, each in its own file."""
