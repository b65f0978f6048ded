"""`cmray sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmray.cli.console import errors, print_json, say
from cmray.cli.measuring import Actors, set_threads, subject_of, working
from cmray.cli.options import (
    DEFAULT_STORAGE,
    Address,
    Json,
    RunName,
    Sampler,
    Storage,
    TrackingUri,
    Weights,
    command,
    numbers,
    sampler_named,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cmray.cli.documents import Drawn
    from cmray.config.checkpoint_facts import CheckpointFacts
    from cmray.engine.drawing import Drawing
    from cmray.engine.evaluator import Pool
    from cmray.engine.results import Subject
    from cmray.samplers import Sampler as Sampling

#: images unless --num says, the most that a grid has, and those of a trajectory
NUM, GRID_MOST, SHOWN = 64, 4096, 8
#: below so many images Ray takes longer to start than this process to draw them
RAY_FROM = 1024


def sample(
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="FILE.png (a grid), FILE.npz, FILE.safetensors, or a folder of PNGs with index.csv.",
            show_default=False,
        ),
    ] = None,
    nfe: Annotated[
        int | None, typer.Option("--nfe", min=1, help="Network evaluations per image; default 1, of a teacher 35.")
    ] = None,
    times: Annotated[
        str | None,
        typer.Option(
            "--times", metavar="80,0.8", help="Noise levels, descending; 'searched' takes the best that were found."
        ),
    ] = None,
    sampler_name: Sampler = None,
    num: Annotated[int, typer.Option("--num", min=1, help="Number of images.")] = NUM,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Image i has seed SEED + i.")] = 0,
    classes: Annotated[
        str | None,
        typer.Option("--class", metavar="3 or 0,1,2", help="Labels, repeated in turn; class-conditional models."),
    ] = None,
    weights: Weights = None,
    trajectory: Annotated[
        Path | None,
        typer.Option(
            "--trajectory",
            metavar="FILE.gif|FILE.png",
            help=f"The way from noise to the first {SHOWN} images, as an animation or a strip: the noisy state at each "
            f"noise level, and what the network says of it.",
            show_default=False,
        ),
    ] = None,
    parallel: Actors = 1,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Draw images from a model. The same seed gives the same image, whatever else is drawn with it.

    An interrupted command goes on where it was. With --parallel, Ray actors draw the same images.

    Example: cmray sample quickstart/cd-1a2b3c --nfe 1 --num 64 --out samples.png
    """
    levels: Any = "searched" if times == "searched" else numbers(times, "--times", float)
    labels = numbers(classes, "--class", int)
    if nfe is not None and isinstance(levels, list) and nfe != len(levels):
        raise typer.BadParameter(f"--times gives {len(levels)} noise levels, but --nfe is {nfe}; leave one of them out")
    named = sampler_named(sampler_name, nfe is not None or levels is not None)
    if out is None and trajectory is None:
        raise typer.BadParameter("give --out FILE or a folder for the images, --trajectory FILE, or both")
    from cmray.cli.progress import Progress

    _check_places(out, num, seed, trajectory)
    storage = storage.expanduser().absolute()
    who = subject_of(run, storage, tracking_uri, weights)
    from cmray.config.checkpoint_facts import read_checkpoint_facts
    from cmray.core.errors import CmrayError
    from cmray.engine.searched import sampler_for

    facts = read_checkpoint_facts(who.checkpoint)
    if labels is not None and not facts.num_classes:
        raise CmrayError(f"--class is given, but {run} is not class-conditional")
    if labels is not None and not all(0 <= label < facts.num_classes for label in labels):
        raise CmrayError(f"--class {classes}: labels are 0 to {facts.num_classes - 1}")
    how = sampler_for(who, nfe, levels, named)
    drawing = _drawing(who, facts, how, seed, num, labels)
    progress = Progress(errors)
    set_threads([(who.checkpoint, facts, who.weights)])
    try:
        if trajectory is not None:
            _write_trajectory(who, how, drawing, trajectory)
        if out is not None:
            with _place(drawing, parallel, address, progress) as pool:
                _write(who, how, drawing, out, pool, _told(progress, run))
    finally:
        progress.close()
    if as_json:
        told: Drawn = {"sampler": how.title, "nfe": how.nfe, "times": list(how.times), "weights": who.weights}
        if out is not None:
            told["out"], told["num"], told["seed"] = str(out), num, seed
        if trajectory is not None:
            told["trajectory"] = str(trajectory)
        print_json(told)
        return
    if how.times[0] < (top := who.run.noise.sigma_max):
        say(f"note: samples begin as pure noise of level {top:g}; from {how.times[0]:g} they are bad")
    if out is not None:
        say(f"{num:,} images ({_shown(who, how, drawing)}): {out}")
    if trajectory is not None:
        say(f"the way to {min(num, SHOWN)} of them: {trajectory}" if out else f"trajectory: {trajectory}")
    as_given = [w for option, value in (("--weights", weights), ("--class", classes)) if value for w in (option, value)]
    if sampler_name is not None:
        as_given += ["--sampler", sampler_name]
    say(f"next: {_next(who, run, how, out, trajectory, storage, as_given)}")


def _check_places(out: Path | None, num: int, seed: int, trajectory: Path | None) -> None:
    """Raises CmrayError where the results cannot go."""
    from cmray.core.errors import CmrayError
    from cmray.core.files import check_place

    if out is not None:
        kind = out.suffix.lower()
        if kind not in (".png", ".npz", ".safetensors", ""):
            raise CmrayError(
                f"--out {out}: write FILE.png for a grid, FILE.npz or FILE.safetensors for arrays, or a folder "
                f"without ending"
            )
        if kind == ".png" and num > GRID_MOST:
            raise CmrayError(f"--out {out}: a grid has at most {GRID_MOST:,} images, not {num:,}; write FILE.npz")
    if trajectory is not None and trajectory.suffix.lower() not in (".gif", ".png"):
        raise CmrayError(f"--trajectory {trajectory}: write FILE.gif for an animation or FILE.png for a strip")
    if out is not None and trajectory is not None and out.absolute() == trajectory.absolute():
        raise CmrayError(f"--out and --trajectory are both {out}; give each a file of its own")
    if out is not None:
        check_place(out, "--out", folder=out.suffix == "")
    if trajectory is not None:
        check_place(trajectory, "--trajectory")
    if seed + num > 2**63:
        raise CmrayError(f"--seed {seed}: with {num:,} images it goes beyond 2**63 - 1")


def _drawing(
    who: Subject, facts: CheckpointFacts, how: Sampling, seed: int, num: int, labels: list[int] | None
) -> Drawing:
    from cmray.engine.drawing import Drawing

    return Drawing(
        who.checkpoint,
        who.weights,
        who.weights_sha256,
        how.model_dump(mode="json"),
        seed,
        num,
        facts.shape,
        facts.num_classes,
        None if labels is None else tuple(labels),
    )


def _place(drawing: Drawing, parallel: int, address: str | None, progress: Any) -> Any:
    """A pool of --parallel actors, or this process."""
    from contextlib import nullcontext

    if parallel > 1 and address is None and drawing.count < RAY_FROM:
        progress.message(f"Fewer than {RAY_FROM:,} images: this process draws them")
    elif parallel > 1 or address is not None:
        return working(parallel, address, threads=False)  # small networks leave Python's lock to nobody
    from cmray.engine.evaluator import InlinePool
    from cmray.engine.session import default_device

    return nullcontext(InlinePool(default_device(), one_thread=False))


def _told(progress: Any, run: str) -> Callable[[int, int], None]:
    """Shows what is drawn now; what is there from a command that was stopped would make it look fast."""
    there: list[int] = []

    def told(done: int, of: int) -> None:
        if not there:
            there.append(done)
            if done:
                progress.message(f"{done:,} of {of:,} images are there already")
        progress.task(f"Sampling {run}", done - there[0], of - there[0])

    return told


def _write(
    who: Subject, how: Sampling, drawing: Drawing, out: Path, pool: Pool, progress: Callable[[int, int], None]
) -> None:
    """Draws the images and writes them where they belong."""
    from cmray.engine.drawing import drawn
    from cmray.engine.outputs import WRITERS
    from cmray.engine.searched import name_of
    from cmray.report.drawn import write_grid

    about = {
        "model": name_of(who),
        "weights": who.weights,
        "weights_sha256": who.weights_sha256,
        "sampler": how.title,
        "nfe": str(how.nfe),
        "times": ", ".join(map(repr, how.times)),
        "first_seed": str(drawing.first_seed),
    }
    place = out.absolute()
    with drawn(drawing, place.with_name(f".{place.name}.parts"), pool, progress) as parts:
        if place.suffix.lower() == ".png":
            write_grid(parts, place, f"{name_of(who)}: {_shown(who, how, drawing)}")
        else:
            WRITERS[place.suffix.lower()](parts, place, about)


def _write_trajectory(who: Subject, how: Sampling, drawing: Drawing, path: Path) -> None:
    from cmray.engine.opened import open_trained
    from cmray.engine.searched import name_of
    from cmray.report.drawn import write_trajectory

    model = open_trained(who.checkpoint, who.folder, weights=who.weights).model
    title = f"{name_of(who)}: {how.title}, {how.nfe} NFE, {who.weights}"
    write_trajectory(model, how, drawing, range(min(drawing.count, SHOWN)), path, title)


def _shown(who: Subject, how: Sampling, drawing: Drawing) -> str:
    last = drawing.first_seed + drawing.count - 1
    usual = len(how.times) == 1 and how.times[0] == who.run.noise.sigma_max
    times = "" if usual or len(how.times) > 6 else f" at {', '.join(f'{t:.3g}' for t in how.times)}"
    return f"{how.title}, {how.nfe} NFE{times}, {who.weights}, seeds {drawing.first_seed} to {last}"


def _next(
    who: Subject,
    run: str,
    how: Sampling,
    out: Path | None,
    trajectory: Path | None,
    storage: Path,
    as_given: list[str],
) -> str:
    """A command that goes on from here, with the options that were given and belong to it too."""
    from cmray.engine.searched import searched_times

    if out is not None and out.suffix.lower() in (".npz", ""):
        data = who.run.data
        return command(
            "evaluate", "--images", str(out), "--reference-data", str(data.path or data.name), storage=storage
        )
    if who.kind == "consistency":
        known = searched_times(who.folder, who.weights_sha256)
        better = next((nfe for nfe, found in known.items() if list(found.times) != list(how.times)), None)
        if better is not None:
            words = ("--times", "searched", "--nfe", str(better), "--out", "searched.png")
            return command("sample", run, *words, *as_given, storage=storage)
        if not known:
            own = [] if "--weights" not in as_given else ["--weights", who.weights]
            return command("search", run, "--nfe", "2", *own, storage=storage)
    if trajectory is None and how.nfe > 1:
        words = ("--times", ",".join(map(repr, how.times))) if who.kind == "consistency" else ("--nfe", str(how.nfe))
        return command("sample", run, *words, *as_given, "--trajectory", "trajectory.gif", storage=storage)
    budget = ["--nfe", str(how.nfe)] if "--sampler" in as_given else []
    return command("sample", run, *budget, *as_given, "--num", "10000", "--out", "samples.npz", storage=storage)
