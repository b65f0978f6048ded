"""`cmray sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmray.cli.console import print_json, say
from cmray.cli.options import DEFAULT_STORAGE, Json, RunName, Sampler, Storage, TrackingUri, numbers, sampler_named


def sample(
    run: RunName,
    out: Annotated[
        Path, typer.Option("--out", help="FILE.png (grid), FILE.npz or a folder of PNGs.", show_default=False)
    ],
    nfe: Annotated[int | None, typer.Option("--nfe", min=1, help="Network evaluations per image; default 1.")] = None,
    times: Annotated[str | None, typer.Option("--times", metavar="80,0.8", help="Noise levels, descending.")] = None,
    sampler_name: Sampler = None,
    num: Annotated[int, typer.Option("--num", min=1, help="Number of images.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Image i has seed SEED + i.")] = 0,
    classes: Annotated[
        str | None,
        typer.Option("--class", metavar="3 or 0,1,2", help="Labels, repeated in turn; class-conditional models."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="'student' or 'ema RATE'; default the first EMA.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Draw images from a model. The same seed gives the same image, whatever else is drawn with it.

    Example: cmray sample quickstart/cd-1a2b3c --nfe 1 --num 64 --out samples.png
    """
    levels, labels = numbers(times, "--times", float), numbers(classes, "--class", int)
    if nfe is not None and levels and nfe != len(levels):
        raise typer.BadParameter(f"--times gives {len(levels)} noise levels, but --nfe is {nfe}; leave one of them out")
    named = sampler_named(sampler_name, nfe is not None or levels is not None)
    from cmray.core.errors import CmrayError
    from cmray.engine.session import default_device
    from cmray.tracking.places import find_run

    kind = out.suffix.lower()
    if kind not in (".png", ".npz", ""):
        raise CmrayError(f"--out {out}: write FILE.png for a grid, FILE.npz for arrays, or a folder without ending")
    if kind == "" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CmrayError(f"--out {out} exists and is not an empty folder")
    if not out.absolute().parent.is_dir():
        raise CmrayError(f"--out {out}: folder {out.absolute().parent} does not exist")
    found = find_run(run, storage.expanduser().absolute(), tracking_uri)
    import numpy as np
    import torch

    from cmray.core.precond import to_pixels
    from cmray.engine.model import load_model

    model = load_model(found.checkpoint, default_device(), weights)
    if labels is not None and not model.num_classes:
        raise CmrayError(f"--class is given, but {run} is not class-conditional")
    if labels is not None and not all(0 <= label < model.num_classes for label in labels):
        raise CmrayError(f"--class {classes}: labels are 0 to {model.num_classes - 1}")
    sampler = model.sampler(len(levels) if levels else nfe or model.run.objective.own_nfe or 1, levels, named)
    given = torch.tensor([labels[i % len(labels)] for i in range(num)]) if labels else None
    images = to_pixels(model.images(sampler, range(seed, seed + num), given)).numpy()
    shown = f"{sampler.title}, {sampler.nfe} NFE, {model.weights}, seeds {seed} to {seed + num - 1}"
    if kind == ".png":
        from cmray.report.grids import image_grid

        columns = max(1, round(num**0.5))
        image_grid(
            images, out, columns=columns, scale=max(1, 40 // images.shape[-1]), title=f"{found.folder.name}: {shown}"
        )
    elif kind == ".npz":
        with out.open("wb") as file:
            np.savez(file, arr_0=images.transpose(0, 2, 3, 1))  # [N,H,W,C], as the reference writes it
    else:
        from PIL import Image

        out.mkdir(exist_ok=True)
        for i, image in enumerate(images):
            pixels = image.transpose(1, 2, 0)
            Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out / f"{seed + i:06d}.png")
    if as_json:
        told = {"sampler": sampler.title, "nfe": sampler.nfe, "times": sampler.times, "weights": model.weights}
        print_json({"out": str(out), "num": num, **told})
    else:
        say(f"{num} images ({shown}): {out}")
