"""`cmray edit`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from cmray.cli.console import errors, print_json, say
from cmray.cli.options import (
    DEFAULT_STORAGE,
    Json,
    OwnSet,
    RunName,
    Storage,
    TrackingUri,
    Weights,
    fields_set,
    numbers,
    same_command,
)

#: registered names: importing them would import torch, which help must not wait for; a test compares
TASKS = ("colorize", "denoise", "inpaint", "interpolate", "stroke", "superres")


def edit(
    context: typer.Context,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help=f"{', '.join(TASKS)}; or a plug-in's.", show_default=False)
    ],
    run: RunName,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="FILE.png (side by side), a folder (that, each result, edit.json), or FILE.gif (interpolate).",
            show_default=False,
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="IMAGE|DIR",
            help="Image files, folders of them, or a dataset: its name, prepared folder or .npz. Repeatable.",
        ),
    ] = None,
    take: Annotated[int, typer.Option("--take", min=1, help="Images of a dataset, drawn by a fixed seed.")] = 4,
    crop: Annotated[
        str,
        typer.Option("--crop", help="How other sizes become the model's: center, adm, lsun, stretch, pad or none."),
    ] = "center",
    background: Annotated[
        str, typer.Option("--background", help="What transparent pixels are laid on: white or black.")
    ] = "white",
    mask: Annotated[
        Path | None, typer.Option("--mask", help="inpaint, stroke: image that is white where the model may paint.")
    ] = None,
    box: Annotated[
        str | None,
        typer.Option("--box", metavar="X,Y,W,H", help="inpaint, stroke: left, top, width, height in pixels."),
    ] = None,
    word: Annotated[str | None, typer.Option("--word", help="inpaint, stroke: its letters are the hole.")] = None,
    factor: Annotated[int | None, typer.Option("--factor", help="superres: 2 to 16, default 4.")] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--level", metavar="0.5 or 0.1,1", help="stroke, interpolate: first noise level; denoise: one or several."
        ),
    ] = None,
    noisy: Annotated[bool, typer.Option("--noisy", help="denoise: the input carries the noise already.")] = False,
    between: Annotated[
        str | None, typer.Option("--between", metavar="3,8", help="interpolate: two seeds; default SEED, SEED + 1.")
    ] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="interpolate: images on the way, default 9.")] = None,
    num: Annotated[
        int | None, typer.Option("--num", min=1, help="Results per input; default 3, of denoise and interpolate 1.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Result i of each input has seed SEED + i.")] = 0,
    classes: Annotated[
        str | None, typer.Option("--class", metavar="3 or 0,1,2", help="Labels, repeated in turn over the inputs.")
    ] = None,
    set_: OwnSet = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Noise levels, by default the task's.")] = None,
    times: Annotated[str | None, typer.Option("--times", metavar="80,5,0.5", help="Noise levels, descending.")] = None,
    weights: Weights = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Edit images with a model that was never trained for it: Algorithm 4 of Consistency Models.

    What is known of the input is kept; the same seed gives the same result, whatever else is edited with it.

    \b
    Example: cmray edit inpaint quickstart/cd-1a2b --input digits --box 2,2,4,4 --out inpaint.png
    cmray edit inpaint RUN --input photo.png --mask hole.png --out results/
    cmray edit colorize RUN --input gray.jpg --num 4 --out colors.png
    cmray edit superres RUN --input small.png --factor 4 --out large.png
    cmray edit stroke RUN --input painting.png --level 1.5 --out stroke.png
    cmray edit interpolate RUN --between 3,8 --frames 12 --out way.gif
    cmray edit denoise RUN --input digits --level 0.5,2,10 --out ladder.png
    """
    given = {
        "box": numbers(box, "--box", int),
        "word": word,
        "factor": factor,
        "level": _levels(task, numbers(level, "--level", float)),
        "noisy": noisy or None,
        "between": numbers(between, "--between", int),
        "frames": frames,
    }
    levels, labels = numbers(times, "--times", float), numbers(classes, "--class", int)
    from cmray.cli.edit_out import check_out, write_out
    from cmray.cli.progress import Progress
    from cmray.core.errors import CmrayError
    from cmray.editing import editing_tasks
    from cmray.tracking.places import find_run

    cls = editing_tasks.get(task)
    check_out(out, task)
    options: dict[str, Any] = fields_set({key: value for key, value in given.items() if value is not None}, set_)
    if not inputs and (cls.needs_images or mask is not None):
        raise CmrayError(f"{task} needs --input, an image, a folder of them, or a dataset such as digits")
    for option, value, allowed in (
        ("--crop", crop, ("center", "adm", "lsun", "stretch", "pad", "none")),
        ("--background", background, ("white", "black")),
    ):
        if value not in allowed:
            raise CmrayError(f"{option} {value}: allowed are {', '.join(allowed)}")
    found = find_run(run, storage.expanduser().absolute(), tracking_uri)

    import numpy as np
    import torch

    from cmray.core.precond import from_pixels
    from cmray.engine.edit import edit as edit_images
    from cmray.engine.edit import make_task
    from cmray.engine.edit_inputs import Rule, read_mask, read_pictures
    from cmray.engine.model import load_model
    from cmray.engine.session import default_device

    # a mask is read when the size of the images is known; what is wrong with other options is said before
    operator = make_task(task, options if mask is None else {**options, "mask": np.ones((1, 1), np.bool_)})
    model = load_model(found.checkpoint, default_device(), weights)
    rule = Rule(model.shape, cast(Any, crop), cast(Any, background), getattr(operator, "factor", None))
    if mask is None:
        operator.check(model.shape)
    pictures = read_pictures(inputs or [], rule, take, storage.expanduser().absolute(), "--input")
    if mask is not None:
        operator = make_task(task, {**options, "mask": read_mask(mask, pictures, rule, "--mask")})
    images = from_pixels(torch.from_numpy(np.stack([p.pixels for p in pictures]))) if pictures else None
    progress = Progress(errors)
    try:
        results = edit_images(
            model, operator, images, num, seed, labels, steps, levels,
            lambda done, total: progress.task(f"Editing with {model.weights}: {total} results", done, total),
        )  # fmt: skip
    finally:
        progress.close()
    told = write_out(out, found.folder.name, model, operator, pictures, results)
    if as_json:
        print_json(told)
        return
    say(f"{len(results)} results ({told['title']}): {out}")
    for line in told["notes"]:
        say(line)
    again = same_command(context, ("out", "num", "seed", "between", "as_json"))
    other = out.with_name(f"{out.stem}-more{out.suffix}")
    last = results[-1].row
    seeds = ((last.seed if last.seed_to is None else last.seed_to) + 1) % 2**62
    say(f"next: {again} --seed {seeds} --num {max(2, cls.default_num)} --out {shlex.quote(str(other))}")


def _levels(task: str, levels: list[float] | None) -> Any:
    """A list for denoise, one number for the others."""
    if levels is None or task == "denoise":
        return levels
    if len(levels) > 1:
        raise typer.BadParameter(f"--level gives {len(levels)} noise levels; {task} starts from one")
    return levels[0]
