"""What `--json` of each command prints, as types. Writers name them, docs/json.md is made of them, tests hold real
output to them. Imported by type checkers and by whoever describes or checks documents, not by the commands."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from cmray.config.checkpoint_facts import Origin
from cmray.datasets.manifest import Manifest
from cmray.tracking.records import Decision, Evaluation, Provenance, Result, Search, SeedBlock, Status


class Copied(TypedDict):
    """The experiment files that were copied."""

    folder: Annotated[str, "where they are, absolute"]
    files: Annotated[list[str], "their paths in it"]


class PlannedTrial(TypedDict):
    """One model of a plan."""

    trial: Annotated[str, "EXPERIMENT/TRIAL, as commands take it"]
    label: Annotated[str, "what tells it apart"]
    role: Annotated[Literal["teacher", "trial"], "teacher or trial"]
    panels: Annotated[list[str], "panels that it belongs to; of a teacher none"]
    steps: Annotated[int, "training steps"]
    workers: Annotated[int, "processes that share each batch"]
    min_workers: Annotated[int | None, "as few as it goes on with; null waits for all"]
    cpus: Annotated[float, "logical CPUs of all its workers"]
    gpus: Annotated[float, "GPUs of all its workers"]
    state: Annotated[str, "new, done, `resumes at STEP`, or `stopped at STEP`"]
    seconds: Annotated[float | None, "expected training time; null where it cannot be measured here"]
    gpu_hours: Annotated[float | None, "from counted operations, where a trial on GPUs cannot be timed here; else null"]


class Plan(TypedDict):
    """What a sweep would do. Nothing is started or written."""

    experiment: Annotated[str, "its name"]
    description: Annotated[str, "of the experiment file"]
    trials: Annotated[list[PlannedTrial], "teachers first"]
    seconds: Annotated[float | None, "expected time of all that is left; null where it cannot be measured here"]
    gpu_hours: Annotated[float | None, "from counted operations, where a trial on GPUs cannot be timed here; else null"]
    evaluate: Annotated[dict[str, Any] | None, "the section [evaluate](configuration.md#evaluate), defaults filled in"]
    search: Annotated[dict[str, Any] | None, "the section [search](configuration.md#search), defaults filled in"]


class SweptTrial(TypedDict):
    """One model of a sweep, with all that was measured of it."""

    trial: Annotated[str, "EXPERIMENT/TRIAL"]
    label: Annotated[str, "what tells it apart"]
    role: Annotated[Literal["teacher", "trial"], "teacher or trial"]
    status: Annotated[Status, "waiting, running, finished, stopped or failed"]
    error: Annotated[str | None, "first line of the error; null unless it failed"]
    stopped: Annotated[Decision | None, "of a trial that a stopping rule ended"]
    evaluations: Annotated[list[Evaluation], "every number on record"]
    searches: Annotated[list[Search], "every search of sampling times on record"]


class Swept(TypedDict):
    """What a sweep did, and what its experiment holds now."""

    experiment: Annotated[str, "its name"]
    trained: Annotated[int, "models trained by this command"]
    failed: Annotated[int, "trials that failed"]
    stopped: Annotated[int, "trials that a stopping rule has ended, now or before"]
    measured: Annotated[int, "numbers measured by this command"]
    left: Annotated[list[str], "what is left when `--max-hours` was over; else empty"]
    trials: Annotated[list[SweptTrial], "teachers first"]
    files: Annotated[dict[str, str], "file name: path, of the report"]
    mlflow: Annotated[str | None, "the command or address that opens MLflow; null without tracking"]


class Trained(TypedDict):
    """One trained run."""

    trial: Annotated[str, "EXPERIMENT/TRIAL"]
    status: Annotated[Status, "finished, or failed (exit code 1)"]
    result: Annotated[Result | None, "null unless it has finished"]


class Measured(Provenance):
    """One number with what it depends on."""

    value: float = Field(description="the number; over several blocks of seeds their mean")
    low: float | None = Field(description="of the 95% interval; null where the measure has none")
    high: float | None = Field(description="of the 95% interval; null where the measure has none")
    error: float | None = Field(description="standard error; null where the measure has none")
    note: str = Field(description="what the measure has to say of the value")
    better: Literal["lower", "higher"] = Field(description="which values are: lower or higher")
    blocks: list[SeedBlock] = Field(description="the value of each block of seeds; empty for one block")
    best: float | None = Field(description="the best of the blocks of seeds; null for one block")
    spread: float | None = Field(description="standard deviation over the blocks of seeds; null for one block")


class Found(Search):
    """One search: the times that it found, and what they are worth on fresh seeds."""

    run: str = Field(description="RUN as it was given")
    reported: float = Field(description="the metric of the found times, on seeds that no search uses")
    reported_low: float | None = Field(description="of its 95% interval")
    reported_high: float | None = Field(description="of its 95% interval")


class Drawn(TypedDict):
    """How images were drawn, and where they are."""

    out: NotRequired[Annotated[str, "as given; absent without `--out`, as are num and seed"]]
    num: NotRequired[Annotated[int, "images"]]
    seed: NotRequired[Annotated[int, "of the first image; image i has seed + i"]]
    sampler: Annotated[str, "name and options"]
    nfe: Annotated[int, "network evaluations per image"]
    times: Annotated[list[float], "noise levels, descending"]
    weights: Annotated[str, "student or ema RATE"]
    trajectory: NotRequired[Annotated[str, "as given; absent without `--trajectory`"]]


class EditedImage(TypedDict):
    """One result."""

    input: Annotated[str | None, "name of the image it was made of; null between two seeds"]
    seed: Annotated[int, "of its noise"]
    seed_to: NotRequired[Annotated[int, "the other seed, of a way between two"]]
    alpha: NotRequired[Annotated[float, "0 at seed to 1 at seed_to"]]
    times: Annotated[list[float], "noise levels, descending"]
    nfe: Annotated[int, "network evaluations"]
    psnr_db: Annotated[
        float | None, "against the input, in dB; null where the input is not the truth, or equals the result"
    ]
    psnr_given_db: Annotated[float | None, "the same of what the model was shown"]
    lpips: Annotated[float | None, "against the input; null without the truth or without weights"]
    known_error: Annotated[float, "largest change of a known value, in [-1, 1]"]
    known_error_8_bit: Annotated[float, "the same of the pixels as they are written, in 8 bits"]
    file: NotRequired[Annotated[str, "name in the folder; absent where `--out` is one file"]]


class Edited(TypedDict):
    """What was made of the inputs; also `edit.json` of a folder."""

    out: Annotated[str, "as given"]
    task: Annotated[str, "as given"]
    trial: Annotated[str, "folder name of the trial or checkpoint"]
    weights: Annotated[str, "student or ema RATE"]
    title: Annotated[str, "what stands above the picture"]
    notes: Annotated[list[str], "what to know about the results, a sentence each"]
    results: Annotated[list[EditedImage], "input by input, seed by seed"]


class Reported(TypedDict):
    """The report that was written."""

    files: Annotated[dict[str, str], "file name: path"]
    sentences: Annotated[list[str], "what the table says"]


class Imported(TypedDict):
    """The checkpoint that was made."""

    out: Annotated[str, "as given"]
    shape: Annotated[tuple[int, int, int], "channels, height, width in pixels"]
    num_classes: Annotated[int, "0 without labels"]
    net: Annotated[dict[str, Any], "the section [net](configuration.md#net), as a student's has to be"]
    objective: Annotated[dict[str, Any], "the section [objective](configuration.md#objective)"]
    origin: Annotated[Origin, "where the weights come from"]
    assumed: Annotated[str, "what the file did not tell and was taken for granted; empty for nothing"]


class ExportedModel(TypedDict):
    """The folder that was written."""

    out: Annotated[str, "as given"]
    format: Annotated[str, "as given"]
    weights: Annotated[str, "student or ema RATE"]
    licence: Annotated[str | None, "for the model card; null where none was given"]
    files: Annotated[list[str], "relative to out"]


class Convergence(TypedDict):
    """One measured order of convergence."""

    theorem: Annotated[str, "such as Theorem 1"]
    quantity: Annotated[str, "what the errors are of"]
    label: Annotated[str, "which solver, distance or direction"]
    data: Annotated[str, "name of the mixture"]
    intervals: Annotated[list[int], "N - 1, ascending"]
    errors: Annotated[list[float], "the error at each of them"]
    expected: Annotated[float, "the order that the theory gives"]
    order: Annotated[float, "the measured one, between the last two"]
    holds: Annotated[bool, "whether the two agree"]


class Theory(TypedDict):
    """The theorems, measured."""

    description: Annotated[str, "of the theory file"]
    curves: Annotated[list[Convergence], "one for each statement, case and mixture"]
    files: Annotated[list[str], "table and figure"]


class LearnedFrom(TypedDict):
    """The images that a classifier learned from."""

    name: Annotated[str, "of the dataset"]
    split: Annotated[str, "part of it"]
    digest: Annotated[str, "SHA-256 of the content"]
    count: Annotated[int, "images"]
    shape: Annotated[list[int], "channels, height, width in pixels"]
    classes: Annotated[list[str], "names by label"]


class Features(TypedDict):
    """The classifier that was trained."""

    file: Annotated[str, "as given"]
    sha256: Annotated[str, "of its content, by which it counts"]
    accuracy: Annotated[float, "share of held-out images classified right, 0 to 1"]
    n_correct: Annotated[int, "held-out images classified right"]
    n_test: Annotated[int, "held-out images"]
    split: Annotated[str, "how they were held out"]
    seed: Annotated[int, "of the split, the weights and the order"]
    epochs: Annotated[int, "passes over the images"]
    trace: Annotated[float, "that the covariance of the features of the real images was scaled to"]
    scale: Annotated[float, "by which features are multiplied for that"]
    parameters: Annotated[int, "of the network"]
    dataset: Annotated[LearnedFrom, "what it learned from"]
    versions: Annotated[dict[str, str], "of Python and of packages"]
    device: Annotated[str, "cpu or cuda"]


class KnownJob(TypedDict):
    """What the cluster says of one job."""

    id: Annotated[str, "EXPERIMENT-HASH, with -2, -3, ... when it was submitted again"]
    status: Annotated[str, "PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED"]
    experiment: Annotated[str, "its name"]
    hash: Annotated[str, "of what will be there in the end: experiment, panels, storage"]
    storage: Annotated[str, "where results go, as the nodes name it"]
    revision: Annotated[str, "of the code that it carries, with +changes where its tree differed"]
    submitted: Annotated[float | None, "seconds since the epoch, UTC"]
    ended: Annotated[float | None, "seconds since the epoch, UTC; null before it has"]
    exit_code: Annotated[int | None, "of the sweep; null before it has ended, or where the cluster does not tell"]
    message: Annotated[str, "what the cluster says about its state"]
    entrypoint: Annotated[str, "the command that the cluster runs"]


class SubmittedJob(KnownJob):
    """A job, and whether this command has started it."""

    new: Annotated[bool, "false for one that ran or waited already"]


class JobLogs(KnownJob):
    """A job, and what it has printed."""

    logs: Annotated[str, "all of it so far"]


class Checked(TypedDict):
    """One thing that was looked at."""

    name: Annotated[str, "what it is"]
    ok: Annotated[bool, "whether nothing is to mend"]
    found: Annotated[str, "what is there, or what is wrong"]
    mend: Annotated[str, "what to do about it; empty where nothing is known or needed"]


#: command line -> what it prints, in the order of the manual
DOCUMENTS: dict[str, Any] = {
    "cmray init": Copied,
    "cmray sweep --dry-run": Plan,
    "cmray sweep": Swept,
    "cmray train": Trained,
    "cmray evaluate": list[Measured],
    "cmray search": list[Found],
    "cmray sample": Drawn,
    "cmray edit": Edited,
    "cmray report": Reported,
    "cmray import": Imported,
    "cmray export": ExportedModel,
    "cmray theory": Theory,
    "cmray data prepare": Manifest,
    "cmray data info": Manifest,
    "cmray features train": Features,
    "cmray jobs submit": SubmittedJob,
    "cmray jobs list": list[KnownJob],
    "cmray jobs logs": JobLogs,
    "cmray jobs stop": KnownJob,
    "cmray doctor": list[Checked],
}
