"""`cmray sweep`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cmray.cli.console import duration, errors, output, print_json, say
from cmray.cli.exits import DONE, FAILED, OUT_OF_TIME
from cmray.cli.options import (
    DEFAULT_STORAGE,
    Address,
    File,
    Json,
    MaxConcurrent,
    MaxHours,
    Only,
    Overlay,
    Set,
    Storage,
    TrackingUri,
    given,
    mlflow_command,
    on_command_line,
    same_command,
    shown_storage,
)
from cmray.cli.options import command as cli_command
from cmray.cli.report import show_record

if TYPE_CHECKING:
    from pathlib import Path

    from cmray.cli.documents import Plan as PlanDocument
    from cmray.cli.documents import PlannedTrial, Swept
    from cmray.cluster.sweep import Outcome
    from cmray.config.plan import Plan


def sweep(
    context: typer.Context,
    file: File,
    set_: Set = None,
    overlay: Overlay = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    only: Only = None,
    max_concurrent: MaxConcurrent = None,
    max_hours: MaxHours = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> int:
    """Train, evaluate and search every trial of an experiment file; only what is missing is done.

    With --address http://HOST:8265 it runs there as a job, as with `cmray jobs submit --follow`; Ctrl-C leaves it.

    Example: cmray sweep experiments/quickstart.yaml

    Example: cmray sweep experiments/fig3.yaml --overlay experiments/overlays/digits.yaml
    """
    began = time.monotonic()
    errors.print(f"[bold]cmray sweep[/] {escape(str(file))}", highlight=False, soft_wrap=True)
    from cmray.cluster.address import is_job_server, ray_address

    if is_job_server(ray_address(address)) and not dry_run:
        from cmray.cli.jobs import submitted

        return submitted(
            file,
            overrides=set_ or [],
            overlays=overlay or [],
            only=only or [],
            storage=shown_storage(storage) if given(context, "storage") else None,
            tracking_uri=tracking_uri if on_command_line(context, "tracking_uri") else None,  # another machine's
            max_concurrent=max_concurrent,
            max_hours=max_hours,
            address=address,
            follow=True,
            as_json=as_json,
        )
    from cmray.cli.progress import Progress
    from cmray.cluster.budget import Budget
    from cmray.cluster.sweep import Sweep
    from cmray.config.plan import plan_experiment
    from cmray.core.errors import ConfigError, MissingDataError, MissingWeightsError
    from cmray.core.locks import check_writable
    from cmray.tracking.make import make_tracker

    storage = storage.expanduser().absolute()
    try:
        plan = plan_experiment(file, set_ or [], storage, only or [], overlay or [])
    except (MissingDataError, MissingWeightsError) as error:
        from cmray.cli.missing import explained

        raise explained(error, file, set_ or [], storage, only or [], overlay or []) from None
    if not plan.config.panels:
        raise ConfigError(f"{file} has no panels, so there is nothing to sweep; `cmray train {file}` trains it")
    progress = Progress(errors)
    tracker = make_tracker(tracking_uri, storage, progress.warn)
    budget = Budget(max_hours, began)
    work = Sweep(plan, storage, ray_address(address), tracker, progress, max_concurrent, budget)
    work.check(room=not dry_run)  # what is planned here may run elsewhere
    shown = _describe(plan, max_concurrent, ray_address(address))
    if as_json and dry_run:
        print_json(shown)
        return 0
    _show_plan(shown, shown_storage(storage))
    if dry_run:
        return 0
    check_writable(storage)
    tracker.warm_up()
    try:
        outcome = work.run()
    finally:
        progress.close()
    command = mlflow_command(tracking_uri, storage, tracker.ui_command())
    if as_json:
        print_json(_as_json(outcome, command))
    else:
        _show(outcome, command, storage)
    if outcome.left:
        _show_left(outcome, max_hours, same_command(context))
        return OUT_OF_TIME
    return FAILED if outcome.failed else DONE


def _show_left(outcome: Outcome, hours: float | None, again: str) -> None:
    """What a sweep whose time was up has done, what it has left, and how to go on."""
    asked = [t for t in outcome.record.trials if t.name in outcome.asked]
    own = [t for t in asked if t.status == "finished"]
    left = f"{', '.join(outcome.left[:5])}{f' and {len(outcome.left) - 5} more' if outcome.left[5:] else ''}"
    errors.print(
        escape(
            f"Time is up (--max-hours {hours:g}): {len(own)} of {len(asked)} models are trained, "
            f"{outcome.trained} of them now; left: {left}"
        ),
        highlight=False,
        soft_wrap=True,
    )
    errors.print(f"Go on with: {escape(again)}", highlight=False, soft_wrap=True)


def _describe(plan: Plan, limit: int | None, address: str | None) -> PlanDocument:
    """What a sweep will do, as plain values."""
    from cmray.cluster.forecast import forecast, needs_cost
    from cmray.cluster.stages import result_of, resumes_at, stopped
    from cmray.engine.cost import cost_of

    expected = forecast(plan, limit, here=address is None)
    trials: list[PlannedTrial] = []
    finished = [t for t in plan.all_trials if result_of(t) is not None]
    cost = cost_of(plan, finished) if needs_cost(plan, expected) else None
    for trial in plan.all_trials:
        run, done = trial.run, result_of(trial) is not None
        ended = stopped(plan, trial)
        at = run.train.steps if done else resumes_at(trial)
        state = "done" if done else f"resumes at {at:,}" if at else "new"
        r = run.resources
        trials.append(
            {
                "trial": f"{trial.experiment}/{trial.name}",
                "label": trial.label,
                "role": trial.role,
                "panels": list(trial.panels),
                "steps": run.train.steps,
                "workers": r.workers,
                "min_workers": r.min_workers,
                "cpus": r.workers * r.cpus_per_worker,
                "gpus": r.workers * r.gpus_per_worker,
                "state": f"stopped at {ended.step:,}" if ended else state,
                "seconds": 0.0 if done or ended else expected.trials[str(trial.folder)],
                "gpu_hours": cost.trials[str(trial.folder)] if cost else None,
            }
        )
    return {
        "experiment": plan.config.name,
        "description": plan.config.description,
        "trials": trials,
        "seconds": expected.total,
        "gpu_hours": cost.total if cost else None,
        "evaluate": plan.config.evaluate.model_dump(mode="json") if plan.config.evaluate else None,
        "search": plan.config.search.model_dump(mode="json") if plan.config.search else None,
    }


def _show_plan(shown: PlanDocument, storage: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    from cmray.cli.missing import hours
    from cmray.engine.cost import SPEED

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("trial", no_wrap=True, min_width=13)
    table.add_column("what", overflow="fold", ratio=3)
    table.add_column("panels", overflow="fold", ratio=2)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("resources", no_wrap=True)
    table.add_column("state", no_wrap=True)
    costly = shown["gpu_hours"] is not None
    if costly:
        table.add_column("GPU-hours", justify="right", no_wrap=True)
    for t in shown["trials"]:
        each = f"{t['cpus'] / t['workers']:g} CPU" + (f" + {t['gpus'] / t['workers']:g} GPU" if t["gpus"] else "")
        least = f"{t['min_workers']} to " if t["min_workers"] is not None else ""
        panels = "(teacher)" if t["role"] == "teacher" else ", ".join(t["panels"])
        table.add_row(
            t["trial"].rpartition("/")[2],
            escape(t["label"]),
            escape(panels),
            f"{t['steps']:,}",
            f"{least}{t['workers']} x {each}",
            t["state"],
            *([hours(t["gpu_hours"] or 0)] if costly else []),
        )
    errors.print(table)
    new = sum(t["state"] != "done" and not t["state"].startswith("stopped") for t in shown["trials"])
    evaluate, search = shown["evaluate"], shown["search"]
    stages = [f"train {new} of {len(shown['trials'])} models" if new else "nothing to train"]
    if evaluate:
        budgets = " and ".join(map(str, evaluate["nfe"]))
        stages.append(f"{evaluate['metric']} at {budgets} NFE on {evaluate['num_samples']:,} samples")
    if search:
        which = "all models" if search["trials"] == "all" else "the best model"
        stages.append(f"search sampling times of {which}")
    errors.print(f"Plan: {'; '.join(stages)}. Results under {storage}", highlight=False, soft_wrap=True)
    if new:
        seconds = shown["seconds"]
        about = (
            f"about {duration(seconds)}"
            if seconds is not None
            else f"{hours(shown['gpu_hours'])} GPU-hours {SPEED}"
            if shown["gpu_hours"] is not None
            else "unknown until the first steps (not measurable here)"
        )
        errors.print(f"Estimated time: [bold]{about}[/]", highlight=False)


def _show(outcome: Outcome, command: str | None, storage: Path) -> None:
    record = outcome.record
    if not any((outcome.trained, outcome.measured, outcome.failed, outcome.left, outcome.stopped_now)):
        output.print("Everything was done already; nothing was trained or measured.", highlight=False)
    show_record(record)
    found = [(t.label, s) for t in record.trials for s in t.searches]
    for label, s in found:
        times = ", ".join(f"{t:.3g}" for t in s.times)
        say(f"searched times for {s.nfe} NFE of {label}: {times}")
    output.print()
    for name, title in (
        ("curve.png", "curves"),
        ("search.png", "search"),
        ("samples.png", "samples"),
        ("table.md", "table"),
        ("report.html", "report"),
    ):
        if name in outcome.files:
            say(f"{title:>8}: {outcome.files[name]}")
    if command:
        say(f"{'MLflow':>8}: {command}")
    if words := _sample_best(outcome):
        say(f"{'next':>8}: {cli_command(*words, storage=storage)}")


def _sample_best(outcome: Outcome) -> list[str]:
    """The command that draws from the best sampler; empty before there is one."""
    from cmray.cluster.best import best_sampler, served_times

    found = best_sampler(outcome.record)
    if found is None:
        return []
    trial, value = found
    times = served_times(trial, value) if value.provenance.nfe > 1 else None
    how = ["--times", ",".join(f"{t:.6g}" for t in times)] if times else ["--nfe", str(value.provenance.nfe)]
    return ["sample", f"{trial.experiment}/{trial.name}", *how, "--num", "64", "--out", "samples.png"]


def _as_json(outcome: Outcome, command: str | None) -> Swept:
    record = outcome.record
    return {
        "experiment": record.name,
        "trained": outcome.trained,
        "failed": outcome.failed,
        "stopped": outcome.stopped,
        "measured": outcome.measured,
        "left": list(outcome.left),
        "trials": [
            {
                "trial": f"{t.experiment}/{t.name}",
                "label": t.label,
                "role": t.role,
                "status": t.status,
                "error": t.error.splitlines()[0] if t.error else None,
                "stopped": t.stopped,
                "evaluations": t.evaluations,
                "searches": t.searches,
            }
            for t in record.trials
        ],
        "files": {name: str(path) for name, path in outcome.files.items()},
        "mlflow": command,
    }
