"""`cmray train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cmray.cli.console import errors, output, print_json, say
from cmray.cli.options import DEFAULT_STORAGE, Address, File, Json, Overlay, Set, Storage, TrackingUri, command

if TYPE_CHECKING:
    from cmray.cli.documents import Trained


def train(
    file: File,
    set_: Set = None,
    overlay: Overlay = None,
    resume: Annotated[str, typer.Option("--resume", metavar="auto|never", help="never starts from step 0.")] = "auto",
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> int:
    """Train the single run of an experiment file, and its teacher if that is missing.

    One worker trains in this process, several under Ray Train; under torchrun its processes are the workers.

    Example: cmray train experiments/presets/digits-edm.yaml
    """
    if resume not in ("auto", "never"):
        raise typer.BadParameter(f"--resume is {resume!r}; allowed: auto, never")
    from cmray.cluster.plain import PlainSweep, check_torchrun, follow_rank0, needs_ray, torchrun_rank
    from cmray.config.plan import plan_experiment
    from cmray.core.errors import ConfigError, MissingDataError, MissingWeightsError

    rank = torchrun_rank()
    storage = storage.expanduser().absolute()
    if rank == 0 or rank is None:
        errors.print(f"[bold]cmray train[/] {escape(str(file))}", highlight=False, soft_wrap=True)
    try:
        plan = plan_experiment(file, set_ or [], storage, overlays=overlay or [])
    except (MissingDataError, MissingWeightsError) as error:
        from cmray.cli.missing import explained

        raise explained(error, file, set_ or [], storage, [], overlay or []) from None
    if plan.config.panels:
        raise ConfigError(
            f"{file} has panels ({', '.join(plan.config.panels)}); `cmray sweep {file}` trains all their trials"
        )
    check_torchrun(plan)
    if rank:
        follow_rank0(plan)
        return 0
    from cmray.cli.progress import Progress
    from cmray.cluster.connect import ray_address
    from cmray.cluster.sweep import Sweep
    from cmray.core.locks import check_writable
    from cmray.engine.loop import clear_trial
    from cmray.engine.remote_sync import held
    from cmray.tracking.make import make_tracker

    (trial,) = plan.trials
    progress = Progress(errors)
    tracker = make_tracker(tracking_uri, storage, progress.warn)
    plain = rank == 0 or (ray_address(address) is None and not needs_ray(plan))
    work = (PlainSweep if plain else Sweep)(plan, storage, ray_address(address), tracker, progress)
    work.check()
    check_writable(storage)
    if resume == "never":
        with held(storage, [plan.folder]):  # not what another process is training
            clear_trial(trial.folder)
    tracker.warm_up()
    try:
        outcome = work.run_in_session() if isinstance(work, PlainSweep) else work.run()
    finally:
        progress.close()
    name = f"{trial.experiment}/{trial.name}"
    own = next(t for t in outcome.record.trials if t.name == trial.name)
    if as_json:
        told: Trained = {"trial": name, "status": own.status, "result": own.result}
        print_json(told)
    elif own.status == "finished":
        said = "trained" if outcome.trained else "was trained already"
        output.print(f"{name} {said}: {trial.run.train.steps:,} steps", highlight=False)
        last = [e for e in own.events if e.kind == "curve"][-1:]
        for event in last:
            shown = "  ".join(f"{k} {v:.3g}" for k, v in event.metrics.items())
            output.print(
                f"  {shown} (n = {trial.run.curve.num_samples:,})" if trial.run.curve else shown, highlight=False
            )
        words = ("sample", name, "--nfe", str(trial.run.objective.usual_nfe), "--num", "64", "--out", "samples.png")
        say(f"next: {command(*words, storage=storage)}")
    return 0 if own.status == "finished" else 1
