"""The whole report of an experiment: files for a paper, and sentences that say what the numbers say."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cmray.core.files import write_atomic
from cmray.report.beside import beside_published, plain_latex, plain_markdown, published_names
from cmray.report.columns import Column, extractors_of, is_flagged, one_step_column, value_columns
from cmray.report.figures import STEMS, sheets
from cmray.report.html import report_html
from cmray.report.latex import to_latex
from cmray.report.layout import save_sheet
from cmray.report.tables import FLAG, fd_table, footnotes, format_value, to_csv, to_markdown
from cmray.tracking.records import Evaluation, ExperimentRecord, TrialRecord

#: a difference below this fraction is not called better or worse: another training seed may turn it round
ABOUT = 0.03


def write_report(experiment: ExperimentRecord, out_dir: Path, published: str | None = None) -> dict[str, Path]:
    """Write what there is to tell into out_dir, and return it by file name.

    report.html, all of it on one page; table.csv (full precision), table.md (with the sentences and footnotes) and
    table.tex always; curve, steps and search, each .png and .svg, as far as there is something to draw;
    published.csv where there are published numbers for the data. Files of an earlier report are replaced; what can
    no longer be made is removed, so that a folder never mixes two states.

    Args:
        published: a dataset whose published numbers are shown; those of the experiment's own data without.

    Raises:
        UnknownNameError: nothing is published for `published`; before anything is written.
    """
    datasets = published_names(experiment) if published is None else [published]
    beside = {name: beside_published(experiment, name) for name in datasets}
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    frame, notes, sentences = fd_table(experiment), footnotes(experiment), summary_sentences(experiment)
    heading = f"# {experiment.name}\n\n" + (f"{experiment.description}\n\n" if experiment.description else "")
    said = "\n".join(f"- {sentence}" for sentence in sentences)
    known = "".join(f"\n## Published numbers for {name}\n\n{plain_markdown(one)}" for name, one in beside.items())
    texts = {
        "table.csv": to_csv(frame),
        "table.md": f"{heading}{said}\n\n{to_markdown(frame, notes)}{known}",
        "table.tex": to_latex(frame, notes) + "".join(f"\n{plain_latex(one)}" for one in beside.values()),
    }
    if beside:
        texts["published.csv"] = to_csv(pd.concat([one.assign(data=name) for name, one in beside.items()]))
    drawn = sheets(experiment)
    page = report_html(
        experiment, sentences=sentences, table=frame, notes=notes, sheets=drawn, files=texts, published=beside
    )
    paths = [out_dir / name for name in ("report.html", *texts)]
    for name, text in {"report.html": page, **texts}.items():
        write_atomic(out_dir / name, text)
    for sheet in drawn:
        paths += save_sheet(sheet, out_dir)
    for name in ("published.csv", *(f"{stem}.{kind}" for stem in STEMS for kind in ("png", "svg"))):
        if out_dir / name not in paths:
            (out_dir / name).unlink(missing_ok=True)
    return {path.name: path for path in paths}


def summary_sentences(experiment: ExperimentRecord) -> list[str]:
    """What the table says, computed from it alone: better, worse or not known. No sentence compares two columns
    whose values were measured differently."""
    columns = value_columns(experiment)
    one_step = one_step_column(experiment, columns)
    sentences: list[str] = []
    trials = experiment.trials
    ranked = [row for row in one_step.best_first() if trials[row].role == "trial"] if one_step else []
    if not one_step or not ranked:
        sentences.append(f"No trial has a finite one-step {experiment.metric} yet.")
    else:
        sentences += _best_one_step(experiment, one_step, ranked, columns)
        for column in columns:
            same = column.metric == one_step.metric and column.protocol == one_step.protocol
            if column.searched and column.nfe > 1 and same:
                sentences += _searched_against_one(trials, column, one_step)
        sentences += _panel_bests(trials, one_step, ranked)
    counts = Counter(trial.status for trial in trials if trial.status != "finished")
    left = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    if left:
        sentences.append(f"Of {len(trials)} models not all are finished: {left}.")
    return sentences


def _best_one_step(
    experiment: ExperimentRecord, one_step: Column, ranked: Sequence[int], columns: Sequence[Column]
) -> list[str]:
    trials, best = experiment.trials, ranked[0]
    value = one_step.value(best)
    flagged = {row for row in ranked if is_flagged(trials[row], extractors_of(experiment))}
    mark = f" {FLAG}" if best in flagged else ""
    n = one_step.cells[best].provenance.n
    sentences = [
        f"Best in one step: {trials[best].label}{mark} with {one_step.metric} {format_value(value)} (n = {n:,})."
    ]
    close = _not_told_apart(one_step, ranked)
    if close:
        said = [f"{trials[row].label} ({format_value(one_step.value(row))})" for row in close[:4]]
        more = f" and {len(close) - 4} more" if close[4:] else ""
        sentences.append(f"By their 95% intervals it cannot be told from {', '.join(said)}{more}.")
    if best in flagged:
        fair = next((row for row in ranked if row not in flagged), None)
        if fair is not None:
            sentences.append(
                f"That model was trained in the features it is measured in; the best that was not is "
                f"{trials[fair].label} with {format_value(one_step.value(fair))}."
            )
    teachers = [row for row in one_step.best_first() if trials[row].role == "teacher"]
    if teachers:
        other = one_step.cells[teachers[0]]
        sentences.append(
            _against(trials[best].label, one_step.cells[best], "the teacher's own single step", other, one_step)
        )
    many = [
        (column, row)
        for column in columns
        if column.metric == one_step.metric and column.protocol == one_step.protocol and column.nfe > 1
        for row in column.best_first()
        if trials[row].role == "teacher"
    ]
    if many:
        column, row = max(many, key=lambda pair: pair[0].nfe)
        what = f"the teacher's {column.nfe} NFE"
        sentences.append(_against(trials[best].label, one_step.cells[best], what, column.cells[row], one_step))
    return sentences


def _not_told_apart(one_step: Column, ranked: Sequence[int]) -> list[int]:
    """Rows whose 95% interval overlaps that of the best one."""
    return [row for row in ranked[1:] if _overlap(one_step.cells[ranked[0]], one_step.cells[row])]


def _overlap(a: Evaluation, b: Evaluation) -> bool:
    """Whether two numbers have 95% intervals, and these overlap."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low <= b.high and b.low <= a.high


def _against(who: str, own: Evaluation, what: str, level: Evaluation, column: Column) -> str:
    """`A: 2.40 is 0.0296 times the teacher's own single step (81.20), so better.`, whichever way it went."""
    value, other = own.value, level.value
    shown = f"{who}: {format_value(value)}"
    if value == other:
        return f"{shown} equals {what}."
    if _overlap(own, level):
        return f"{shown} cannot be told from {what} ({format_value(other)}) by their 95% intervals."
    verdict = "better" if (value < other) == column.lower_is_better else "worse"
    if value <= 0 or other <= 0:  # a ratio would say nothing
        return f"{shown} is {verdict} than {what} ({format_value(other)})."
    if abs(value / other - 1) < ABOUT:
        return f"{shown} is about the same as {what} ({format_value(other)})."
    return f"{shown} is {value / other:.3g} times {what} ({format_value(other)}), so {verdict}."


def _searched_against_one(trials: Sequence[TrialRecord], column: Column, one_step: Column) -> list[str]:
    rows = [
        row
        for row in column.cells
        if math.isfinite(column.value(row)) and math.isfinite(one_step.value(row)) and trials[row].role == "trial"
    ]
    if not rows:
        return []
    sign = 1 if column.lower_is_better else -1
    better = [row for row in rows if sign * column.value(row) < sign * one_step.value(row)]
    worse = [trials[row].label for row in rows if row not in better]
    text = f"{column.nfe} searched steps beat one in {len(better)} of {len(rows)} models"
    if all(one_step.value(row) > 0 for row in rows):
        middle = statistics.median(column.value(row) / one_step.value(row) for row in rows)
        text += f" (median ratio {middle:.2f})"
    if worse:
        text += f"; not in {', '.join(worse[:4])}{f' and {len(worse) - 4} more' if worse[4:] else ''}"
    return [text + "."]


def _panel_bests(trials: Sequence[TrialRecord], one_step: Column, ranked: Sequence[int]) -> list[str]:
    sentences = []
    for panel in dict.fromkeys(panel for trial in trials if trial.role == "trial" for panel in trial.panels):
        rows = [row for row in ranked if panel in trials[row].panels]
        missing = sum(panel in t.panels and t.role == "trial" for t in trials) - len(rows)
        without = f"; {missing} without a value" if missing else ""
        said = [f"{trials[row].label} ({format_value(one_step.value(row))})" for row in rows]
        if not rows:
            sentences.append(f"Panel {panel}: no value yet.")
        elif len(rows) == 1:
            sentences.append(f"Panel {panel}: only {said[0]} has a value{without}.")
        elif one_step.value(rows[0]) == one_step.value(rows[1]):
            sentences.append(f"Panel {panel}: {said[0]} and {said[1]} are equal and best of {len(rows)}{without}.")
        elif _overlap(one_step.cells[rows[0]], one_step.cells[rows[1]]):
            sentences.append(
                f"Panel {panel}: best of {len(rows)} is {said[0]}, which cannot be told from {said[1]} by their 95% "
                f"intervals{without}."
            )
        else:
            sentences.append(f"Panel {panel}: best of {len(rows)} is {said[0]}, then {said[1]}{without}.")
    return sentences
