"""The page report.html: everything about an experiment in one file that needs no other."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cmray.core.version import __version__
from cmray.report.beside import MEASURED
from cmray.report.cells import Grid, fd_grid, frame_grid, status_kind
from cmray.report.compare import Comparison, parts_of
from cmray.report.costs import TOTAL, costs
from cmray.report.differences import differences
from cmray.report.inline import data_uri, inline_svg, read_png, swatch
from cmray.report.layout import Sheet, page_svgs
from cmray.report.missing import missing_of
from cmray.report.provenance import models, protocols, versions
from cmray.tracking.records import ExperimentRecord

if TYPE_CHECKING:
    from jinja2 import Template

_PAGE = Path(__file__).with_name("page")
_HEADINGS = {"curve": "During training", "steps": "By sampling steps", "search": "Searched sampling times"}
_TYPES = {".csv": "text/csv", ".md": "text/markdown", ".tex": "application/x-tex"}
#: pictures of single models, where an experiment has none of all
_MAX_PICTURES = 24


def report_html(
    experiment: ExperimentRecord,
    *,
    sentences: Sequence[str],
    table: pd.DataFrame,
    notes: Sequence[str],
    sheets: Sequence[Sheet],
    files: Mapping[str, str],
    published: Mapping[str, pd.DataFrame],
) -> str:
    """The page. It is read without scripts and asks no other machine or file for anything.

    Args:
        sentences, table, notes, sheets: as the other files of the report have them.
        files: texts to download from the page, by file name.
        published: published numbers by dataset, as `beside_published` gives them.
    """
    from markupsafe import Markup

    missing = missing_of(experiment)
    figures = [_figure(sheet, experiment.name) for sheet in sheets]
    samples, without = _samples(experiment)
    script = (_PAGE / "page.js").read_text()
    sections = [("findings", "Findings"), ("missing", "Missing")][: 2 if missing else 1]
    sections += [(figure["anchor"], figure["heading"]) for figure in figures]
    sections += [("table", "Numbers"), *([("published", "Published")] if published else []), ("samples", "Samples"),
                 ("differences", "Differences"), ("cost", "Cost"), ("provenance", "Provenance")]  # fmt: skip
    title = f"Comparison of {experiment.name}" if isinstance(experiment, Comparison) else experiment.name
    return _template().render(
        title=title,
        description=experiment.description,
        facts=_facts(experiment),
        sections=sections,
        sentences=sentences,
        missing=[
            {"status": one.status, "kind": status_kind(one.status), "label": one.trial.label, "reason": one.reason,
             "detail": one.detail}
            for one in missing
        ],
        figures=figures,
        table=fd_grid(table),
        notes=notes,
        downloads=[(name, data_uri(text.encode(), _TYPES[Path(name).suffix])) for name, text in files.items()],
        published=[(name, _published(frame)) for name, frame in published.items()],
        samples=samples,
        without_samples=without,
        differences=_differences(experiment),
        costs=_costs(experiment),
        protocols=frame_grid(protocols(experiment)),
        models=frame_grid(models(experiment)),
        versions=versions(experiment),
        folders=[part.name for part in parts_of(experiment)],
        newest=_newest(experiment),
        version=__version__,
        css=Markup((_PAGE / "page.css").read_text()),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


@lru_cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html")


def _facts(experiment: ExperimentRecord) -> list[str]:
    roles = Counter(trial.role for trial in experiment.trials)
    counts = Counter(trial.status for trial in experiment.trials)
    named = [f"{roles[role]} {role}{'s' * (roles[role] != 1)}" for role in ("teacher", "trial") if roles[role]]
    return [
        " and ".join(named) or "no trials",
        *(f"{count} {status}" for status, count in counts.items()),
        f"ranked by {experiment.metric}",
    ]


def _figure(sheet: Sheet, experiment: str) -> dict[str, Any]:
    from markupsafe import Markup

    plots = []
    for i, (plot, svg) in enumerate(zip(sheet.plots, page_svgs(sheet), strict=True)):
        said = "; ".join(f"{entry.text}: {entry.value}" for entry in plot.entries)
        label = f"{sheet.title}, {plot.title.name}{': ' if said else ''}{said}"
        plots.append({
            "name": plot.title.name,
            "shared": plot.title.shared,
            "svg": Markup(inline_svg(svg, f"{sheet.stem}-{i}", label)),
            "entries": [
                {"sign": Markup(swatch(e.colour, e.marker, e.open)), "text": e.text, "value": e.value}
                for e in sorted(plot.entries, key=lambda entry: -entry.y)
            ],
            "remarks": plot.remarks,
        })  # fmt: skip
    heading = _HEADINGS.get(sheet.stem, sheet.title.removeprefix(f"{experiment}: "))
    return {"anchor": sheet.stem, "heading": heading, "detail": sheet.detail, "plots": plots}


def _published(frame: pd.DataFrame) -> Grid:
    shown = {"FID": _fid, "precision": "{:.2f}".format, "recall": "{:.2f}".format}
    grid = frame_grid(frame.rename(columns={"fid": "FID", "nfe": "NFE"}), shown)
    origins = list(frame["origin"])
    rows = [
        ("here" if origin == MEASURED else "", cells) for origin, (_, cells) in zip(origins, grid.rows, strict=True)
    ]
    return Grid(grid.columns, rows)


def _fid(value: float) -> str:
    """Two decimals, and more where they were published."""
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def _differences(experiment: ExperimentRecord) -> Grid:
    """The longer side down: trials, or fields where there are more of them."""
    frame = differences(experiment)
    return frame_grid(frame.T.rename_axis("field") if frame.shape[1] > frame.shape[0] else frame)


def _costs(experiment: ExperimentRecord) -> Grid:
    frame = costs(experiment).dropna(axis="columns", how="all")
    frame.columns = [str(name).replace("_", " ") for name in frame.columns]
    whole = dict.fromkeys(("steps", "images"), "{:,.0f}".format)
    return frame_grid(frame, {**dict.fromkeys(map(str, frame.columns), "{:,.2f}".format), **whole}, total=TOTAL)


def _samples(experiment: ExperimentRecord) -> tuple[list[dict[str, Any]], list[str]]:
    """Pictures of each experiment: the one of all its models, else those of single ones; and what there is none of."""
    found, without = [], []
    for part in parts_of(experiment):
        folder = part.folder / "samples"
        sources = [(f"All models of {part.name}", folder / "samples.png")]
        if not sources[0][1].is_file():
            sources = [(f"{part.name}: {trial.label}", folder / f"{trial.name}.png") for trial in part.trials]
        pictures = [(caption, picture) for caption, path in sources if (picture := read_png(path))]
        for caption, (uri, width, height) in pictures[:_MAX_PICTURES]:
            found.append({"caption": caption, "uri": uri, "width": width, "height": height})
        if not pictures:
            without.append(f"There are no sample pictures of {part.name}; the results stage of a sweep draws them.")
    return found, without


def _newest(experiment: ExperimentRecord) -> str:
    times = [one.time for t in experiment.trials for one in (*t.events[-1:], *t.evaluations, *t.searches)]
    return f"{datetime.fromtimestamp(max(times), UTC):%Y-%m-%d %H:%M} UTC" if times else "none"
