"""Published numbers beside what was measured here, marked as what they are."""

from __future__ import annotations

import math

import pandas as pd

from cmray.report.columns import is_fid
from cmray.report.latex import latex
from cmray.report.published import published, published_datasets
from cmray.tracking.records import ExperimentRecord

PUBLISHED, MEASURED = "published", "measured here"
COLUMNS = ("origin", "method", "nfe", "fid", "precision", "recall", "source", "note")


def published_names(experiment: ExperimentRecord) -> list[str]:
    """The datasets of an experiment's runs that there are published numbers for."""
    names: list[str] = []
    for trial in experiment.trials:
        data = trial.config.get("data") or {}
        names += [str(data.get("name")), str(data.get("dataset"))]
        names += [evaluation.provenance.dataset for evaluation in trial.evaluations]
    return [name for name in dict.fromkeys(names) if name in published_datasets()]


def beside_published(experiment: ExperimentRecord, dataset: str) -> pd.DataFrame:
    """Published FIDs of `dataset` by NFE, and those of the experiment's numbers that are FIDs of it.

    Columns: origin ("published" or "measured here"), method, nfe, fid, precision, recall, source, note. A Fréchet
    distance in other features, over fewer samples or of other images is no FID, and is not in this table.

    Raises:
        UnknownNameError: there are no published numbers for `dataset`; the message names the nearest.
    """
    rows = published(dataset).assign(origin=PUBLISHED)
    own = []
    for trial in experiment.trials:
        for cell in trial.evaluations:
            p = cell.provenance
            if p.dataset == dataset and is_fid(p) and math.isfinite(cell.value):
                said = f"{p.n:,} samples against {p.reference_n or 'published'} of {p.dataset}/{p.split}, {p.extractor}"
                note = f"{said}{', searched times' if p.searched else ''}"
                own.append({"origin": MEASURED, "method": trial.label, "nfe": p.nfe, "fid": cell.value,
                            "source": experiment.name, "note": note})  # fmt: skip
    frame = pd.concat([rows, pd.DataFrame(own, columns=pd.Index(COLUMNS))]) if own else rows
    frame = frame.reindex(columns=list(COLUMNS)).astype({"nfe": "int64", "precision": "float64", "recall": "float64"})
    return frame.sort_values(["nfe", "fid"], kind="stable", ignore_index=True)


def plain_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table of `beside_published`, each row with its origin."""
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + " :--- |" * len(frame.columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in _texts(frame)]
    return "\n".join(lines) + "\n"


def plain_latex(frame: pd.DataFrame) -> str:
    """A booktabs tabular of `beside_published`, without sources and notes, which do not fit a page."""
    shown = frame.loc[:, ["origin", "method", "nfe", "fid", "precision", "recall"]]
    body = [" & ".join(latex(cell) for cell in row) + r" \\" for row in _texts(shown)]
    head = " & ".join(shown.columns) + r" \\"
    parts = [r"\begin{tabular}{llrrrr}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


def _texts(frame: pd.DataFrame) -> list[list[str]]:
    return [["" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value) for value in row]
            for row in frame.itertuples(index=False)]  # fmt: skip
