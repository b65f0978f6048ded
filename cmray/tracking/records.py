"""What an experiment leaves in its storage folder, as plain typed records.

    <storage>/<experiment>/experiment.json                 the plan: trials, labels, panels
    <storage>/<experiment>/<trial>/config.yaml             the resolved run
    <storage>/<experiment>/<trial>/events.jsonl            one line per logged step: Event
    <storage>/<experiment>/<trial>/result.json             written once, when training has finished: Result
    <storage>/<experiment>/<trial>/evaluations/KEY.json    one Evaluation a file
    <storage>/<experiment>/<trial>/searches/KEY.json       one Search a file
    <storage>/<experiment>/<trial>/error.txt               the traceback of the last failure

Everything else (tables, figures, MLflow) can be made again from these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=True)


class Event(Record):
    """Metrics at a step. `kind` is "train" (loss, N, mu, lr, images per second) or "curve" (fd/... by nfe)."""

    kind: Literal["train", "curve"]
    step: int
    nimg: int
    time: float  # seconds since the epoch, UTC
    metrics: dict[str, float]  # e.g. {"loss": 0.1} or {"fd/digits@1": 3.4}


class Result(Record):
    """What training ended with."""

    steps: int
    nimg: int
    seconds: float  # spent training over all resumed parts
    checkpoint: str  # folder name under checkpoints/
    weights_sha256: str
    versions: dict[str, str]
    git: str | None
    world_size: int


class Provenance(Record):
    """What a metric's value depends on. Values with different provenance never stand in one column."""

    metric: str  # "fd/digits"
    extractor: str
    extractor_sha256: str
    reference_sha256: str  # of the reference statistics
    dataset: str
    split: str
    reference_n: int
    n: int
    seed_first: int
    seed_block: int
    sampler: str
    nfe: int
    times: list[float]  # noise levels of the sampler's steps, descending
    weights: str  # "ema 0.999" or "student"
    weights_sha256: str
    searched: bool  # whether the times were searched for this model


class Evaluation(Record):
    key: str
    value: float
    provenance: Provenance
    seconds: float
    time: float


class SearchPoint(Record):
    index: int  # into the ascending grid
    sigma: float
    value: float


class Search(Record):
    """One greedy search. `times` are the best noise levels found, descending, beginning with sigma_max."""

    key: str
    nfe: int
    times: list[float]
    value: float  # of the best point, on the search's own seeds; the reported number is an Evaluation
    points: list[SearchPoint]  # every evaluated point, in order of evaluation; one round of points per searched time
    rounds: list[int]  # how many of `points` belong to each searched time
    provenance: Provenance  # of the best point
    seconds: float
    time: float


Status = Literal["waiting", "running", "finished", "failed"]


class TrialRecord(Record):
    name: str  # folder name, ends in the content hash
    label: str  # what tells it apart, "heun · l2 · N=9"
    role: Literal["teacher", "trial"]
    panels: list[str]
    objective: str  # "edm", "cd", "ct"
    experiment: str  # whose folder it lies in: a teacher may belong to another experiment
    folder: Path
    config: dict[str, Any]
    status: Status
    error: str | None = None
    result: Result | None = None
    events: list[Event] = []
    evaluations: list[Evaluation] = []
    searches: list[Search] = []
    #: counts how often training was started anew with `--resume never`
    attempt: int = 1
    #: the extractor that is also the training distance's network; such a row is flagged in tables
    trained_in_features_of: str | None = None


class ExperimentRecord(Record):
    name: str
    description: str = ""
    folder: Path
    trials: list[TrialRecord]  # teachers first
    x_axis: Literal["step", "nimg"] = "step"
    #: metric key the report is about, "fd/digits"
    metric: str
    #: samples of a reported number as the experiment file has it now; older records with other n stay, but rank nothing
    num_samples: int | None = None
