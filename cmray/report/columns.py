"""Which values may stand in one column: those whose provenance differs only in what a row is about.

The rows of a table are models, so weights, their hash, the sampler and its times may differ within a column. What
they were measured with may not: the metric, extractor, reference, data, number of samples and seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cmray.tracking.records import Evaluation, ExperimentRecord, Provenance, TrialRecord

#: fields that belong to a row or to the column's own name; every other field of Provenance must agree in a column
ROW_FIELDS = {"weights", "weights_sha256", "sampler", "nfe", "times", "searched"}
_PROTOCOL_FIELDS = [name for name in Provenance.model_fields if name not in ROW_FIELDS]
#: titles of measures where lower is better, and where higher is; here and not asked of the measures, as reports need no
#: torch. A test compares.
LOWER_IS_BETTER = {
    "fd": "Fréchet distance",
    "fd-infinity": "Fréchet distance at n = infinity",
    "kid": "kernel distance (KID)",
    "sfid": "spatial Fréchet distance",
}
HIGHER_IS_BETTER = {
    "is": "Inception Score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
#: samples of a Fréchet distance that is called FID
FID_SAMPLES = 50_000
#: schedules of at most this many noise levels are spelled out in a header
_SPELLED_OUT = 4

Protocol = tuple[object, ...]


@dataclass
class Column:
    """One value column. `cells` maps a row (its index in experiment.trials) to the evaluation shown there."""

    metric: str
    nfe: int
    searched: bool
    protocol: Protocol
    header: str
    cells: dict[int, Evaluation] = field(default_factory=dict)

    @property
    def lower_is_better(self) -> bool:
        return lower_is_better(self.metric)

    @property
    def times_header(self) -> str:
        return f"{self.header}: times"

    def value(self, row: int) -> float:
        """The row's value; NaN when it has none."""
        return self.cells[row].value if row in self.cells else math.nan

    def best_first(self) -> list[int]:
        """Rows with a finite value, best first."""
        rows = [row for row, cell in self.cells.items() if math.isfinite(cell.value)]
        return sorted(rows, key=lambda row: self.cells[row].value * (1 if self.lower_is_better else -1))


Entry = tuple[int, Evaluation]


def protocol_of(provenance: Provenance) -> Protocol:
    """Everything a value depends on beside the model and its sampler."""
    values = (getattr(provenance, name) for name in _PROTOCOL_FIELDS)
    return tuple(json.dumps(value, sort_keys=True) if isinstance(value, dict) else value for value in values)


def lower_is_better(metric: str) -> bool:
    """Of MEASURE/EXTRACTOR; a measure that is not known here is taken for a distance."""
    return metric.split("/")[0] not in HIGHER_IS_BETTER


def measure_title(metric: str) -> str:
    """`Fréchet distance in features of 'digits'` for fd/digits."""
    measure, _, extractor = metric.partition("/")
    title = {**LOWER_IS_BETTER, **HIGHER_IS_BETTER}.get(measure, measure)
    return f"{title} in features of '{extractor}'" if extractor else title


def is_fid(provenance: Provenance) -> bool:
    """Whether a Fréchet distance may be called FID: in Inception's features, over 50,000 samples."""
    p = provenance
    return p.metric.startswith("fd/") and p.extractor.startswith("inception-") and p.n >= FID_SAMPLES


def shown_metric(provenance: Provenance) -> str:
    """`FID (fd/inception-clean)` where it is one, else `fd/digits`."""
    return f"FID ({provenance.metric})" if is_fid(provenance) else provenance.metric


def value_columns(experiment: ExperimentRecord) -> list[Column]:
    """Columns by metric (the experiment's own first), NFE, fixed before searched, fullest protocol first."""
    entries: list[Entry] = [(row, cell) for row, trial in enumerate(experiment.trials) for cell in trial.evaluations]
    protocols = _count(protocol_of(cell.provenance) for _, cell in entries)
    differing = _differing_fields(protocols)

    groups: dict[tuple[str, int, bool, str, Protocol], list[Entry]] = {}
    for row, cell in entries:
        p = cell.provenance
        # A searched schedule is a row's own; fixed ones of several steps are part of what is compared.
        times = "" if p.searched or p.nfe == 1 else times_label(p.times)
        groups.setdefault((p.metric, p.nfe, p.searched, times, protocol_of(p)), []).append((row, cell))

    columns = []
    for (metric, nfe, searched, times, protocol), members in groups.items():
        suffix = _protocol_suffix(metric, protocol, differing)
        for split, part in _split_collisions(members):
            kind = "searched" if searched else f"({times})" if times else ""
            header = ", ".join([" ".join([f"{metric} · {nfe} NFE", kind]).strip(), *split, *suffix])
            cells: dict[int, Evaluation] = {}
            for row, cell in sorted(part, key=lambda entry: entry[1].time):
                cells[row] = cell  # the same thing evaluated again: the newest stands
            columns.append(Column(metric, nfe, searched, protocol, header, cells))

    def order(column: Column) -> tuple[object, ...]:
        own = column.metric != experiment.metric
        return (own, column.metric, -protocols[column.protocol], column.nfe, column.searched, column.header)

    return sorted(columns, key=order)


def one_step_column(experiment: ExperimentRecord, columns: Sequence[Column]) -> Column | None:
    """The column that ranks models: the experiment's metric at 1 NFE, with as many samples as
    the experiment asks for now, else in the protocol with most values."""
    own = [c for c in columns if c.metric == experiment.metric and c.nfe == 1]
    now = [c for c in own if any(e.provenance.n == experiment.num_samples for e in c.cells.values())]
    return next(iter(now or own), None)


def times_label(times: Sequence[float]) -> str:
    """`80, 0.66`, or how many levels a long schedule has."""
    if len(times) <= _SPELLED_OUT:
        return ", ".join(f"{t:.3g}" for t in times)
    return f"{len(times)} levels from {times[0]:.3g}"


def is_flagged(trial: TrialRecord, extractors: Iterable[str]) -> bool:
    """Whether the trial was trained in features that one of `extractors` measures with."""
    return trial.trained_in_features_of in set(extractors)


def extractors_of(experiment: ExperimentRecord) -> list[str]:
    """Names of the extractors that measured anything, or would: in order of use."""
    names = [cell.provenance.extractor for trial in experiment.trials for cell in trial.evaluations]
    return list(dict.fromkeys([*names, experiment.metric.partition("/")[2]]))


def _count(protocols: Iterable[Protocol]) -> dict[Protocol, int]:
    counts: dict[Protocol, int] = {}
    for protocol in protocols:
        counts[protocol] = counts.get(protocol, 0) + 1
    return counts


def _differing_fields(protocols: Iterable[Protocol]) -> dict[str, list[str]]:
    """By metric, the protocol fields that take more than one value."""
    by_metric: dict[object, list[Protocol]] = {}
    for protocol in protocols:
        by_metric.setdefault(protocol[_PROTOCOL_FIELDS.index("metric")], []).append(protocol)
    return {
        str(metric): [name for i, name in enumerate(_PROTOCOL_FIELDS) if len({p[i] for p in members}) > 1]
        for metric, members in by_metric.items()
    }


_SPELLING: dict[str, Callable[[object], str]] = {
    "n": lambda v: f"n={v}",
    "reference_n": lambda v: f"reference n={v}",
    "seed_first": lambda v: f"seeds from {v}",
    "seed_block": lambda v: f"seed blocks of {v}",
    "reference_sha256": lambda v: f"reference {str(v)[:8]}",
    "extractor_sha256": lambda v: f"extractor {str(v)[:8]}",
    "split": lambda v: f"split {v}",
    "dataset": lambda v: f"data {v}",
    "extractor": lambda v: f"extractor {v}",
    "options": lambda v: ", ".join(f"{name}={value}" for name, value in json.loads(str(v)).items()) or "no options",
    "resizer": lambda v: f"resizer {v}",
    "seed_blocks": lambda v: f"{v} blocks of seeds" if v != 1 else "",
}


def _protocol_suffix(metric: str, protocol: Protocol, differing: dict[str, list[str]]) -> list[str]:
    names = differing[metric]
    if {"reference_sha256", "dataset"} <= set(names):  # they say it
        names = [name for name in names if name not in ("split", "reference_n")]
    return [text for name in names if (text := _SPELLING[name](protocol[_PROTOCOL_FIELDS.index(name)]))]


#: what may tell apart two evaluations of one model in one column, coarse to fine
_SPLITS: list[Callable[[Provenance], str]] = [
    lambda p: p.weights.split()[0] if p.weights else "",
    lambda p: p.weights,
    lambda p: p.sampler,
    lambda p: times_label(p.times),
]


def _split_collisions(members: list[Entry], level: int = 0) -> list[tuple[list[str], list[Entry]]]:
    """Split a column only where one model has several values in it, so that no value is hidden by another."""
    if level == len(_SPLITS):
        return [([], members)]
    name = _SPLITS[level]
    names_by_row: dict[int, set[str]] = {}
    for row, cell in members:
        names_by_row.setdefault(row, set()).add(name(cell.provenance))
    if all(len(names) == 1 for names in names_by_row.values()):
        return _split_collisions(members, level + 1)
    parts = []
    for value in sorted({name(cell.provenance) for _, cell in members}):
        part = [(row, cell) for row, cell in members if name(cell.provenance) == value]
        parts += [([value, *rest], sub) for rest, sub in _split_collisions(part, level + 1)]
    return parts
