"""What an experiment leaves in its storage folder, as plain typed records.

    <storage>/<experiment>/experiment.json                 the plan: trials, labels, panels
    <storage>/<experiment>/<trial>/config.yaml             the resolved run
    <storage>/<experiment>/<trial>/events.jsonl            one line per logged step: Event
    <storage>/<experiment>/<trial>/attempts.jsonl          when training began or went on, what was lost before
    <storage>/<experiment>/<trial>/result.json             written once, when training has finished: Result
    <storage>/<experiment>/<trial>/evaluations/KEY.json    one Evaluation a file
    <storage>/<experiment>/<trial>/searches/KEY.json       one Search a file
    <storage>/<experiment>/<trial>/stopping.jsonl          what a stopping rule decided about it: Decision
    <storage>/<experiment>/<trial>/error.txt               the traceback of the last failure
    <storage>/<experiment>/<trial>/errors/N.txt            the traceback of every attempt that failed

Everything else (tables, figures, MLflow) can be made again from these.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=True)


class Event(Record):
    """Metrics at a step. `kind` is "train" (loss, N, mu, lr, images per second), "curve" (fd/... by nfe) or "workers"
    (how many train from here on, of a run that may change their number)."""

    kind: Literal["train", "curve", "workers"] = Field(description="train, curve or workers")
    step: int = Field(description="training steps done")
    nimg: int = Field(description="images seen")
    time: float = Field(description="seconds since the epoch, UTC")
    metrics: dict[str, float] = Field(description="such as loss 0.1, or fd/digits@1 3.4")
    intervals: dict[str, tuple[float, float]] = Field(
        default={}, description="95%, of a curve's metrics, where its samples tell"
    )


class Result(Record):
    """What training ended with."""

    steps: int = Field(description="training steps")
    nimg: int = Field(description="images seen")
    seconds: float = Field(
        description="of training over all resumed parts, on the clock, what was interrupted and repeated included"
    )
    gpu_seconds: float | None = Field(default=None, description="GPUs held times seconds; null in older records")
    cpu_seconds: float | None = Field(default=None, description="of all training processes; null in older records")
    energy_joules: float | None = Field(
        default=None, description="of the GPUs, where NVML tells it of each and no other run shares them"
    )
    repeated_seconds: float = Field(default=0.0, description="of seconds, spent on steps that an interruption undid")
    checkpoint: str = Field(description="folder name under checkpoints/")
    weights_sha256: str = Field(description="SHA-256 of the weights that are sampled from")
    versions: dict[str, str] = Field(description="of Python and of the packages that decide results")
    git: str | None = Field(
        description="revision of cmray, with +changes where its tree differed; null for an installed package"
    )
    world_size: int = Field(description="processes that trained it")


class Provenance(Record):
    """What a metric's value depends on. Values with different provenance never stand in one column.

    The fields of the reference are empty, and reference_n is 0, for a measure that compares with none. Of images that
    no model of ours made, `weights` is their name, `weights_sha256` their digest, and there is no sampler.
    """

    metric: str = Field(description="MEASURE/EXTRACTOR, such as fd/digits")
    extractor: str = Field(description="what computed the features")
    extractor_sha256: str = Field(description="SHA-256 of its weights")
    reference_sha256: str = Field(
        description="SHA-256 of the reference statistics, or of the file of published ones; empty without a reference"
    )
    dataset: str = Field(
        description="of the reference, or the name of the file of published statistics; empty without a reference"
    )
    split: str = Field(description="of that dataset; published for such a file")
    reference_n: int | None = Field(
        description="images of the reference; 0 without one, null where a file of statistics does not tell"
    )
    n: int = Field(description="images measured, of each block of seeds where there are several")
    seed_first: int = Field(description="seed of the first image")
    seed_block: int = Field(description="seeds that went through the network together")
    sampler: str = Field(description="name and options")
    nfe: int = Field(description="network evaluations per image; 0 for images that no model of cmray made")
    times: list[float] = Field(description="noise levels of the sampler's steps, descending")
    weights: str = Field(description="ema RATE or student; for images that no model of cmray made, their name")
    weights_sha256: str = Field(description="SHA-256 of the weights, or the digest of the images")
    searched: bool = Field(description="whether the times were searched for this model")
    options: dict[str, Any] = Field(default={}, description="of the measure, all of them")
    resizer: str = Field(default="none", description="how images became the size of the extractor's network")
    seed_blocks: int = Field(
        default=1, description="disjoint blocks of n seeds that were measured, one after the other from seed_first"
    )


class SeedBlock(Record):
    """The value of one of several blocks of n seeds."""

    seed_first: int = Field(description="seed of the block's first image")
    value: float = Field(description="of this block alone")
    low: float | None = Field(description="of its 95% interval")
    high: float | None = Field(description="of its 95% interval")


class Evaluation(Record):
    """One number. Over several blocks of seeds `value` is the mean and `error` that of the mean."""

    key: str = Field(description="name of the record's file")
    value: float = Field(description="the number; over several blocks of seeds their mean")
    provenance: Provenance = Field(description="what the value depends on")
    seconds: float = Field(description="of measuring, since the number before it that was measured with it")
    time: float = Field(description="when it was measured, seconds since the epoch, UTC")
    low: float | None = Field(default=None, description="of the 95% interval; null where the measure has none")
    high: float | None = Field(default=None, description="of the 95% interval; null where the measure has none")
    error: float | None = Field(default=None, description="standard error; null where the measure has none")
    note: str = Field(default="", description="what the measure has to say of the value")
    better: Literal["lower", "higher"] = Field(default="lower", description="which values are: lower or higher")
    blocks: list[SeedBlock] = Field(default=[], description="the value of each block of seeds; empty for one block")

    @property
    def spread(self) -> float | None:
        """Standard deviation over the blocks of seeds; None for one block."""
        return statistics.stdev(b.value for b in self.blocks) if len(self.blocks) > 1 else None

    @property
    def best(self) -> float | None:
        """The best value of the blocks of seeds, as EDM reports it; None for one block."""
        choose = min if self.better == "lower" else max
        return choose((b.value for b in self.blocks), default=None)


class SearchPoint(Record):
    """A noise level that a search looked at."""

    index: int = Field(description="place in the ascending grid; mode continuous makes its own, evenly in log sigma")
    sigma: float = Field(description="noise level")
    value: float = Field(description="of the metric there; lower is better")
    error: float | None = Field(
        default=None, description="standard error of its difference to the point chosen in its round, where known"
    )
    tied: bool = Field(default=False, description="whether it cannot be told apart from that point")
    confirmed: float | None = Field(
        default=None, description="the value on further samples, for points that were within the noise of the best"
    )


class Search(Record):
    """One greedy search. `times` are the best noise levels found, descending, beginning with sigma_max."""

    key: str = Field(description="name of the record's file")
    nfe: int = Field(description="network evaluations per image, one for each time")
    times: list[float] = Field(description="the best noise levels found, descending, beginning with sigma_max")
    value: float = Field(
        description="of the best point, on the search's own seeds; the reported number is an evaluation on others"
    )
    points: list[SearchPoint] = Field(description="every evaluated point, in order of evaluation")
    rounds: list[int] = Field(description="how many of points belong to each searched time")
    provenance: Provenance = Field(description="what the value of the best point depends on")
    seconds: float = Field(description="of searching, on the clock")
    time: float = Field(description="when it ended, seconds since the epoch, UTC")
    mode: str = Field(default="ternary", description="how it searched")
    parallel: int = Field(default=1, description="candidates of one round of modes section and continuous")
    nfe_spent: int | None = Field(
        default=None, description="images that went through the network for it; null in older records"
    )
    tied: list[float] = Field(
        default=[], description="noise levels that cannot be told apart from the one chosen in their round"
    )
    confirm_samples: int | None = Field(
        default=None, description="samples behind confirmed values; null where none were"
    )


class Decision(Record):
    """What a stopping rule decided about a trial at a training step."""

    rule: dict[str, Any] = Field(description="the rule's options, with the metric that it compares")
    step: int = Field(description="training step at which it judged")
    value: float = Field(description="the trial's own, that was judged")
    goes_on: bool = Field(description="whether the trial trains on")
    limit: float | None = Field(
        description="the largest value that went on; null when there was nothing to compare with"
    )
    known: int = Field(description="trials that were compared, this one included")
    time: float = Field(description="seconds since the epoch, UTC")


Status = Literal["waiting", "running", "finished", "stopped", "failed"]


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
    #: of a trial that a stopping rule ended, what it decided
    stopped: Decision | None = None
    result: Result | None = None
    events: list[Event] = []
    evaluations: list[Evaluation] = []
    searches: list[Search] = []
    #: counts how often training was started anew with `--resume never`
    attempt: int = 1
    #: the extractor that is also the training distance's network; such a row is flagged in tables
    trained_in_features_of: str | None = None

    @property
    def cost(self) -> dict[str, float]:
        """What it took, as far as it was told: train_seconds, gpu_seconds, cpu_seconds, energy_joules and images_seen
        of its training, and repeated_seconds of these where it was interrupted; evaluate_seconds; search_seconds and
        search_images (through the network). Searches that ran together share their seconds."""
        told: dict[str, float | None] = {}
        if (r := self.result) is not None:
            told |= {"train_seconds": r.seconds, "gpu_seconds": r.gpu_seconds, "cpu_seconds": r.cpu_seconds}
            told |= {"energy_joules": r.energy_joules, "images_seen": r.nimg}
            told |= {"repeated_seconds": r.repeated_seconds or None}
        if self.evaluations:
            told["evaluate_seconds"] = sum(e.seconds for e in self.evaluations)
        if self.searches:
            spent = [s.nfe_spent for s in self.searches]
            told["search_seconds"] = sum(s.seconds for s in self.searches)
            told["search_images"] = None if None in spent else sum(n for n in spent if n is not None)
        return {name: float(value) for name, value in told.items() if value is not None}


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


R = TypeVar("R", bound=Record)


def readable_records(folder: Path, kind: type[R]) -> list[R]:
    """The records of a folder by file name; none where it is missing. One that is damaged is left out: the reader of
    the whole experiment names it."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(kind.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return found
