"""In which fields of their configurations the trials of an experiment differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cmray.tracking.names import flatten
from cmray.tracking.records import ExperimentRecord

_DIGITS_OF_A_HASH = 10  # as in the names of trials' folders


def differences(experiment: ExperimentRecord) -> pd.DataFrame:
    """One row per trial (teachers are left out: hardly a field of theirs is their students'), one column per field
    that is not the same in all of them.

    Index `label`; columns are dotted fields as in an experiment file, in its order; cells are text, "" where a trial
    has no such field, or has null there. Hashes are cut to ten digits, and paths to their last part unless two would
    look the same. A trial that has no configuration yet keeps its row, all "", and makes nothing a difference.
    """
    trials = [trial for trial in experiment.trials if trial.role == "trial"]
    configs = [_fields(trial.config) for trial in trials]
    known = [config for config in configs if config]
    names = list(dict.fromkeys(name for config in known for name in config))
    differing = [name for name in names if len({config.get(name, "") for config in known}) > 1]
    columns = {name: _short([config.get(name, "") for config in configs]) for name in differing}
    return pd.DataFrame(columns, index=pd.Index([trial.label for trial in trials], name="label"), dtype="str")


def _fields(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: "" if text == "null" else text for name, text in flatten(config).items()}


def _short(values: Sequence[str]) -> list[str]:
    """The values of one column as they are shown; different ones stay different."""
    shown = [_shown(value) for value in values]
    return shown if len(set(shown)) == len(set(values)) else list(values)


def _shown(value: str) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:_DIGITS_OF_A_HASH]
    if value.startswith("/") or re.match(r"[a-z0-9+]+://", value):
        return value.rstrip("/").rpartition("/")[2]
    return value
