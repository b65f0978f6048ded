"""Numbers that others published: the Consistency Models paper's tables and later few-step methods, with their sources.

They lie as CSV files in published_data/, which `analysis/published` of the repository links to.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cmray.core.errors import UnknownNameError, nearest

FOLDER = Path(__file__).with_name("published_data")
#: samples behind every published FID here
PUBLISHED_SAMPLES = 50_000
_HYPERPARAMETERS = "table3"
_COLUMNS = ["method", "nfe", "fid", "precision", "recall", "source", "note", "inception_score", "group", "reference"]
_TEXT = ["method", "source", "note", "group", "reference"]
_NUMBERS = ["fid", "precision", "recall", "inception_score"]


def published_datasets() -> list[str]:
    """Names that `published` knows: cifar10, imagenet64, lsun-bedroom256, lsun-cat256."""
    return sorted(path.stem for path in FOLDER.glob("*.csv") if path.stem != _HYPERPARAMETERS)


def published(dataset: str) -> pd.DataFrame:
    """What was published for a dataset, one row per method and number of network evaluations.

    Columns: method; nfe, network evaluations per sample, 1 or more; fid, lower is better, of 50,000 samples;
    precision and recall in [0, 1] and inception_score, higher is better, NaN where not published; source, where the
    number stands; note, what to know before citing it, mostly ""; group, the table's own ("later methods" for those
    after the paper); reference, whose method it is.

    None of them was measured with cmray: show them marked as published.

    Raises:
        UnknownNameError: no such dataset; the message names the nearest.
    """
    known = published_datasets()
    if dataset not in known:
        raise UnknownNameError(f"no published numbers for '{dataset}'; {nearest(dataset, known)}")
    frame = pd.read_csv(FOLDER / f"{dataset}.csv", keep_default_na=False, na_values=dict.fromkeys(_NUMBERS, ""))
    frame = frame.astype({"nfe": "int64", **dict.fromkeys(_NUMBERS, "float64"), **dict.fromkeys(_TEXT, "str")})
    return frame.reindex(columns=_COLUMNS)


def published_hyperparameters() -> pd.DataFrame:
    """Table 3 of the paper as printed: a row per hyperparameter, a column per run such as cifar10_cd.

    Cells are text, "" where a run has no such parameter: 800k stands for 800,000 iterations.
    """
    return pd.read_csv(FOLDER / f"{_HYPERPARAMETERS}.csv", index_col="hyperparameter", dtype=str, keep_default_na=False)
