"""`cmray jobs`: sweeps that live on a cluster."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmray.cli.console import duration, errors, output, print_json, say
from cmray.cli.options import File, Json, MaxConcurrent, MaxHours, Only, Overlay, Set
from cmray.core.storage import STORAGE_VARIABLE

if TYPE_CHECKING:
    from cmray.cluster.jobs import Job, Jobs

app = typer.Typer(name="jobs", help="Submit sweeps to a Ray cluster, and look after them.", no_args_is_help=True)

Server = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Job server of the cluster's head, http://HOST:8265; default RAY_API_SERVER_ADDRESS, RAY_ADDRESS, then "
        "port 8265 of this machine.",
    ),
]
JobName = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="A job's id or its beginning, or an experiment's name, of which the newest job is meant.",
        show_default=False,
    ),
]
ClusterStorage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar=STORAGE_VARIABLE,
        metavar="PLACE",
        help="Where results go, as the cluster's nodes name it: s3://..., or a folder that they share.",
    ),
]
ClusterTracking = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store as the cluster's nodes reach it; default is what they are started with, else SQLite in the "
        "storage folder; 'none' tracks nothing.",
    ),
]


@app.command("submit")
def submit(
    file: File,
    set_: Set = None,
    overlay: Overlay = None,
    only: Only = None,
    max_concurrent: MaxConcurrent = None,
    max_hours: MaxHours = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what the job prints until it ends; Ctrl-C leaves it running.")
    ] = False,
    storage: ClusterStorage = None,
    tracking_uri: ClusterTracking = None,
    address: Server = None,
    as_json: Json = False,
) -> int:
    """Run a sweep on a cluster as a job; this machine may leave. One that runs already is not started again.

    Example: cmray jobs submit experiments/fig3.yaml --storage s3://bucket/cmray --address http://HEAD:8265 --follow
    """
    return submitted(
        file,
        overrides=set_ or [],
        overlays=overlay or [],
        only=only or [],
        storage=storage,
        tracking_uri=tracking_uri,
        max_concurrent=max_concurrent,
        max_hours=max_hours,
        address=address,
        follow=follow,
        as_json=as_json,
    )


def submitted(
    file: Path,
    *,
    overrides: list[str],
    overlays: list[Path],
    only: list[str],
    storage: str | None,
    tracking_uri: str | None,
    max_concurrent: int | None,
    max_hours: float | None,
    address: str | None,
    follow: bool,
    as_json: bool,
) -> int:
    """Submits a sweep, and follows it if asked; the exit code. Raises CmrayError for what cannot run there."""
    place = _place(storage)
    from cmray.cluster.jobs import Jobs, Request
    from cmray.config.bundle import bundle_experiment
    from cmray.core.errors import ConfigError
    from cmray.tracking.names import check_uri, without_password

    if tracking_uri is not None and tracking_uri != "none":
        check_uri(tracking_uri)
        if without_password(tracking_uri) != tracking_uri:
            raise ConfigError(
                "--tracking-uri holds a password, which everybody who may list the cluster's jobs would see; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the nodes start"
            )
    _check_plan(file, overrides, overlays, only)
    bundle = bundle_experiment(file, overrides, overlays)
    request = Request(bundle, place, tuple(only), tracking_uri, max_concurrent, max_hours)
    jobs = Jobs(address)
    job, new = jobs.submit(request)
    if new:
        errors.print(f"submitted {job.id} to {jobs.url}, code {job.revision}", highlight=False, soft_wrap=True)
    else:
        began = f" since {_clock(job.submitted)}" if job.submitted else ""
        errors.print(
            f"{job.id} is {job.status.lower()} at {jobs.url}{began}; it is not submitted again",
            highlight=False,
            soft_wrap=True,
        )
    if follow:
        return _follow(jobs, job, as_json, new)
    if as_json:
        print_json({**job.as_dict(), "new": new})
    else:
        say(f"next: {_command('logs', job.id, '--follow', address=address)}")
    return 0


@app.command("list")
def list_(address: Server = None, as_json: Json = False) -> None:
    """Show the sweeps of a cluster, the newest first.

    Example: cmray jobs list --address http://HEAD:8265
    """
    from cmray.cluster.jobs import Jobs

    jobs = Jobs(address)
    known = jobs.all()
    if as_json:
        print_json([job.as_dict() for job in known])
        return
    if not known:
        output.print(f"no sweep was submitted to {jobs.url}", highlight=False, soft_wrap=True)
        say("next: cmray jobs submit experiments/quickstart.yaml --storage PLACE")
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("job", "status", "submitted", "took", "code", "storage"):
        table.add_column(column, no_wrap=column != "storage", overflow="fold")
    for job in known:
        state = job.status.lower() + (f" ({job.exit_code})" if job.exit_code else "")
        code = job.revision[:10] + ("+changes" if job.revision.endswith("+changes") else "")
        table.add_row(job.id, state, _clock(job.submitted), _took(job), code, job.storage)
    output.print(table)
    say(f"next: {_command('logs', known[0].id, address=address)}")


@app.command("logs")
def logs(
    job_name: JobName,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the job ends; Ctrl-C leaves it running.")
    ] = False,
    address: Server = None,
    as_json: Json = False,
) -> int:
    """Show what a job has printed.

    Example: cmray jobs logs fig3 --follow
    """
    from cmray.cluster.jobs import Jobs

    jobs = Jobs(address)
    job = jobs.find(job_name)
    if follow:
        return _follow(jobs, job, as_json, new=False)
    text = jobs.logs(job.id)
    if as_json:
        print_json({**jobs.job(job.id).as_dict(), "logs": text})
        return 0
    _write(text)
    errors.print(_ended(job) if job.is_over else f"{job.id} is {job.status.lower()}", highlight=False, soft_wrap=True)
    if not job.is_over:
        say(f"next: {_command('logs', job.id, '--follow', address=address)}")
    return 0


@app.command("stop")
def stop(job_name: JobName, address: Server = None, as_json: Json = False) -> int:
    """End a job; its trials keep their last checkpoint, and submitting it again goes on there.

    Example: cmray jobs stop fig3
    """
    from cmray.cluster.jobs import Jobs

    jobs = Jobs(address)
    job = jobs.find(job_name)
    if not job.is_over:
        with errors.status(f"{job.id} is asked to end", spinner="dots"):
            job = jobs.stop(job.id)
    if as_json:
        print_json(job.as_dict())
    else:
        output.print(_ended(job) if job.is_over else f"{job.id} has not ended yet", highlight=False, soft_wrap=True)
        say(f"next: {_command('list', address=address)}")
    return 0 if job.is_over else 1


def _follow(jobs: Jobs, job: Job, as_json: bool, new: bool) -> int:
    """Shows a job to its end; Ctrl-C leaves it. The exit code is the sweep's own."""
    try:
        job = jobs.follow(job.id, (lambda text: _write(text, to_errors=True)) if as_json else _write)
    except KeyboardInterrupt:
        errors.print(
            f"\n{job.id} goes on without this terminal"
            f"\ncome back with: {_command('logs', job.id, '--follow', address=jobs.url)}"
            f"\nend it with: {_command('stop', job.id, address=jobs.url)}",
            highlight=False,
            soft_wrap=True,
        )
        return 0
    errors.print(_ended(job), highlight=False, soft_wrap=True)
    if as_json:
        print_json({**job.as_dict(), "new": new})
    if job.status == "SUCCEEDED":
        return 0
    return job.exit_code or 1


def _ended(job: Job) -> str:
    words = {"SUCCEEDED": "has finished", "FAILED": "has failed", "STOPPED": "was stopped"}
    code = f" with exit code {job.exit_code}" if job.exit_code else ""
    why = f": {job.message.splitlines()[0]}" if job.status == "FAILED" and job.exit_code is None and job.message else ""
    return f"{job.id} {words[job.status]}{code} after {_took(job)}{why}"


def _check_plan(file: Path, overrides: list[str], overlays: list[Path], only: list[str]) -> None:
    """What can be known of the experiment here. What lies on the cluster is looked at there."""
    import tempfile

    from cmray.config.plan import plan_experiment
    from cmray.core.errors import CheckpointError, DataError

    with tempfile.TemporaryDirectory() as nowhere:  # the storage is the cluster's
        try:
            plan_experiment(file, overrides, Path(nowhere), only, overlays)
        except (DataError, CheckpointError) as error:
            errors.print(f"looked at on the cluster, as it is not here: {error}", highlight=False, soft_wrap=True)


def _place(storage: str | None) -> str:
    """A storage that outlives the job's own folder. Raises typer.BadParameter."""
    if storage is None or not ("://" in storage or storage.startswith("/")):
        found = "is missing" if storage is None else f"is '{storage}'"
        raise typer.BadParameter(
            f"--storage {found}; a job needs a place that all nodes of the cluster see: s3://BUCKET/FOLDER, or the "
            f"absolute path of a folder that they share"
        )
    if "://" in storage:
        from cmray.datasets.location import Location

        Location(storage)  # refuses a key in it
    return storage


def _write(text: str, to_errors: bool = False) -> None:
    """What a job has printed, as it is."""
    stream = errors.file if to_errors else output.file
    stream.write(text)
    stream.flush()


def _clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def _took(job: Job) -> str:
    return duration((job.ended or time.time()) - job.submitted) if job.submitted else ""


def _command(*words: str, address: str | None) -> str:
    return shlex.join(["cmray", "jobs", *words, *(["--address", address] if address else [])])
