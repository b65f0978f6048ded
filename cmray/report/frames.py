"""An experiment's records as tidy pandas frames, for those who want to ask their own questions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from cmray.core.storage import named_storage
from cmray.report.columns import is_fid
from cmray.report.load import load_experiment
from cmray.tracking.records import ExperimentRecord, Provenance, Search, TrialRecord

_TRIALS = {
    "trial": "str", "label": "str", "role": "str", "panels": "object", "objective": "str", "status": "str",
    "steps": "Int64", "images": "Int64", "minutes": "float64", "workers": "Int64", "attempt": "Int64",
    "trained_in_features_of": "object", "failure": "object", "folder": "str",
}  # fmt: skip
_WHO = {"trial": "str", "label": "str"}
_CURVES = {**_WHO, "kind": "str", "step": "int64", "images": "int64", "metric": "str", "nfe": "Int64",
           "value": "float64", "time": "datetime64[ns, UTC]"}  # fmt: skip
_MEASURED = {
    **dict.fromkeys(Provenance.model_fields, "str"), "times": "object",
    **dict.fromkeys(["n", "seed_first", "seed_block", "seed_blocks", "nfe"], "int64"),
    "reference_n": "Int64", "searched": "bool", "is_fid": "bool",
}  # fmt: skip
_EVALUATIONS = {
    **_WHO, "metric": "str", "nfe": "int64", "value": "float64", "low": "float64", "high": "float64",
    "error": "float64", "spread": "float64", "better": "str", "note": "str", "seconds": "float64",
    "time": "datetime64[ns, UTC]", "key": "str", **_MEASURED,
}  # fmt: skip
_SEARCHES = {
    **_WHO, "nfe": "int64", "mode": "str", "round": "int64", "order": "int64", "index": "int64", "sigma": "float64",
    "value": "float64", "error": "float64", "confirmed": "float64", "tied": "bool", "chosen": "bool",
    "found": "object", "key": "str", "metric": "str", "n": "int64", "seed_first": "int64",
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class ExperimentFrames:
    """Frames of an experiment. `trial` (the folder's name) joins them, and `label` says what tells the trial apart.

    trials: a row per model, teachers first. trial; label; role, teacher or trial; panels, a tuple; objective; status,
        waiting, running, stopped, finished or failed; steps and images trained so far; minutes of training, of finished
        ones;
        workers; attempt, from 1; trained_in_features_of, the extractor that is also its distance's network, or None;
        failure, the last line of its error, or None; folder; and `config.` columns with every field of its resolved
        configuration, such as config.objective.num_sigmas (lists are tuples, missing values null).
    curves: a row per logged value. trial; label; kind, train, curve or workers; step; images; metric, such as loss, lr,
        images_per_second, or fd/digits; nfe, network evaluations per sample, <NA> but for curves; value;
        time, UTC.
    evaluations: a row per reported number. trial; label; metric; nfe; value, of several blocks of seeds the mean; low
        and high, the 95% interval; error, standard error; spread, standard deviation over blocks of seeds; better,
        lower or higher; note; seconds; time, UTC; key; all fields of cmray.tracking.records.Provenance, with times
        (descending noise levels) as a tuple and options as JSON; is_fid, whether it may be called FID. Values whose
        provenance differs in more than the model and its sampler do not compare.
    searches: a row per noise level that a search of sampling times looked at. trial; label; nfe, of the search; mode;
        round, 1 for the second time, 2 for the third; order of evaluation in the search, from 0; index into the grid;
        sigma; value, lower is better; error, standard error of its difference to the chosen one; confirmed, the value
        on further samples; tied, whether it cannot be told from the chosen one; chosen, whether the round ended in it;
        found, the times that the whole search ended in, descending; key; metric; n, samples per value; seed_first.
    record: everything, as cmray.tracking.records.ExperimentRecord; what `cmray.report` makes tables and figures of.
    """

    trials: pd.DataFrame
    curves: pd.DataFrame
    evaluations: pd.DataFrame
    searches: pd.DataFrame
    record: ExperimentRecord = field(repr=False)

    def __repr__(self) -> str:
        record, counts = self.record, self.trials["status"].value_counts()
        status = ", ".join(f"{count} {name}" for name, count in counts.items())
        said = {
            "trials": status or "none yet",
            "curves": ", ".join(self.curves["metric"].unique()),
            "evaluations": ", ".join(self.evaluations["metric"].unique()),
            "searches": f"points of {self.searches[['trial', 'key']].drop_duplicates().shape[0]} searches",
        }
        head = f"{record.name}: {record.description}" if record.description else record.name
        rows = [f"  {name:<12}{len(getattr(self, name)):>6,} rows  {text}" for name, text in said.items()]
        return "\n".join([f"{head} ({record.folder})", *(row.rstrip() for row in rows)])


def load_frames(name: str, storage: str | PathLike[str] | None = None) -> ExperimentFrames:
    """The frames of an experiment; see `cmray.load_experiment`, which is this."""
    given = named_storage(storage)
    place = Path(given).expanduser().absolute()
    if "://" in given:  # what the object store has is fetched first; imports torch
        from cmray.engine.remote import mount
        from cmray.engine.remote_sync import refresh

        place = mount(given)
        refresh(place, [name])
    return frames(load_experiment(place, name))


def frames(record: ExperimentRecord) -> ExperimentFrames:
    """The frames of an experiment that has been read."""
    trials = record.trials
    return ExperimentFrames(
        trials=_trials(trials),
        curves=_frame(_CURVES, [row for trial in trials for row in _curve_rows(trial)]),
        evaluations=_frame(_EVALUATIONS, [row for trial in trials for row in _evaluation_rows(trial)]),
        searches=_frame(_SEARCHES, [row for t in trials for search in t.searches for row in _search_rows(t, search)]),
        record=record,
    )


def _frame(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A frame whose columns have their types even without rows."""
    frame = pd.DataFrame(list(rows), columns=pd.Index(list(columns)))
    for name in (name for name, kind in columns.items() if kind.startswith("datetime")):
        frame[name] = pd.to_datetime(frame[name].astype("float64"), unit="s", utc=True)
    return frame.astype(columns)


def _who(trial: TrialRecord) -> dict[str, str]:
    return {"trial": trial.name, "label": trial.label}


def _trials(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    rows = []
    for trial in trials:
        last = trial.events[-1] if trial.events else None
        result = trial.result
        rows.append(
            {
                **_who(trial),
                "role": trial.role,
                "panels": tuple(trial.panels),
                "objective": trial.objective,
                "status": trial.status,
                "steps": result.steps if result else last.step if last else None,
                "images": result.nimg if result else last.nimg if last else None,
                "minutes": result.seconds / 60 if result else None,
                "workers": result.world_size if result else None,
                "attempt": trial.attempt,
                "trained_in_features_of": trial.trained_in_features_of,
                "failure": (trial.error.strip().splitlines() or [""])[-1] if trial.error is not None else None,
                "folder": str(trial.folder),
            }
        )
    configs = pd.DataFrame([dict(_leaves(trial.config, "config.")) for trial in trials], dtype=object)
    # beside a missing value an int would become a float: such columns stay objects
    typed = [column if column.hasnans else column.infer_objects() for _, column in configs.items()]
    return pd.concat([_frame(_TRIALS, rows), *typed], axis="columns")


def _leaves(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value


def _curve_rows(trial: TrialRecord) -> Iterator[dict[str, Any]]:
    for event in trial.events:
        for name, value in event.metrics.items():
            metric, _, nfe = name.partition("@") if event.kind == "curve" else (name, "", "")
            yield {
                **_who(trial),
                "kind": event.kind,
                "step": event.step,
                "images": event.nimg,
                "metric": metric,
                "nfe": int(nfe) if nfe else None,
                "value": value,
                "time": event.time,
            }


def _evaluation_rows(trial: TrialRecord) -> Iterator[dict[str, Any]]:
    for e in trial.evaluations:
        own = {"value": e.value, "low": e.low, "high": e.high, "error": e.error, "spread": e.spread}
        rest = {"better": e.better, "note": e.note, "seconds": e.seconds, "time": e.time, "key": e.key}
        p = e.provenance
        made = {"times": tuple(p.times), "options": json.dumps(p.options, sort_keys=True), "is_fid": is_fid(p)}
        yield {**_who(trial), **own, **rest, **p.model_dump(), **made}


def _search_rows(trial: TrialRecord, search: Search) -> Iterator[dict[str, Any]]:
    counts = search.rounds or [len(search.points)]
    rounds = [number for number, count in enumerate(counts, start=1) for _ in range(count)]
    for order, (number, point) in enumerate(zip(rounds, search.points, strict=True)):
        yield {
            **_who(trial),
            **point.model_dump(),
            "nfe": search.nfe,
            "mode": search.mode,
            "round": number,
            "order": order,
            "chosen": point.sigma == search.times[number],
            "found": tuple(search.times),
            "key": search.key,
            "metric": search.provenance.metric,
            "n": search.provenance.n,
            "seed_first": search.provenance.seed_first,
        }
