"""What `cmray doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        found: what is there, or what is wrong.
        mend: what to do about it; for those that are not ok.
    """

    name: str
    ok: bool
    found: str
    mend: str = ""
