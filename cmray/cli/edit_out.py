"""What `cmray edit` writes: pictures side by side, each result, and what is known about them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cmray.core.errors import CmrayError, DataError, MissingWeightsError
from cmray.core.files import beside, check_place
from cmray.core.precond import from_pixels, to_pixels
from cmray.editing import EditingTask
from cmray.engine.edit import Result
from cmray.engine.edit_inputs import Picture
from cmray.engine.model import Model
from cmray.metrics.psnr import psnr
from cmray.report.edits import animation, side_by_side

if TYPE_CHECKING:
    from cmray.cli.documents import Edited, EditedImage


def check_out(out: Path, task: str) -> None:
    """Raises CmrayError where `out` cannot be what is written."""
    kind = out.suffix.lower()
    if kind not in (".png", ".gif", "") or (kind == ".gif" and task != "interpolate"):
        gif = ", FILE.gif for an animation" if task == "interpolate" else ""
        raise CmrayError(f"--out {out}: write FILE.png for a picture{gif}, or a folder without ending")
    check_place(out, "--out", folder=kind == "")


def write_out(
    out: Path, trial: str, model: Model, task: EditingTask, pictures: Sequence[Picture], results: Sequence[Result]
) -> Edited:
    """Writes all of it or nothing. Returns what `--json` prints."""
    pixels = [to_pixels(result.image).numpy() for result in results]
    seen = [to_pixels(result.given).numpy() for result in results]
    truths = [_truth(task, pictures, result) for result in results]
    distances, note = _lpips(model, pixels, truths)
    facts: list[EditedImage] = []
    for result, image, given, truth, distance in zip(results, pixels, seen, truths, distances, strict=True):
        row = result.row
        fact: EditedImage = {
            "input": pictures[row.group].name if pictures and row.seed_to is None else None,
            "seed": row.seed,
            "times": list(result.times),
            "nfe": result.nfe,
            "psnr_db": None if truth is None else psnr(image, truth),
            "psnr_given_db": None if truth is None else psnr(given, truth),
            "lpips": distance,
            "known_error": result.known_error,
            "known_error_8_bit": _rounded_error(task, pictures, result, image),
        }
        if row.seed_to is not None:
            fact["seed_to"], fact["alpha"] = row.seed_to, row.alpha
        facts.append(fact)
    title = _title(trial, model, task, results)
    notes = _notes(task, pictures, facts, note)
    told: Edited = {
        "out": str(out),
        "task": task.name,
        "trial": trial,
        "weights": model.weights,
        "title": title,
        "notes": notes,
        "results": facts,
    }
    overview = _overview(task, pictures, results, pixels, seen, facts)
    if out.suffix.lower() == ".png":
        side_by_side(**overview, path=out, title=title)
    elif out.suffix.lower() == ".gif":
        animation(pixels, out)
    else:
        _folder(out, told, title, overview, pictures, results, pixels, seen)
    return told


def _truth(task: EditingTask, pictures: Sequence[Picture], result: Result) -> np.ndarray | None:
    """What the result should look like, where the input says it."""
    if not task.has_truth or not pictures or getattr(task, "noisy", False):
        return None
    picture = pictures[result.row.group]
    return None if picture.small or (task.name == "colorize" and picture.gray) else picture.pixels


def _rounded_error(task: EditingTask, pictures: Sequence[Picture], result: Result, image: np.ndarray) -> float:
    """`known_error` of the picture as it is written, in 8 bits."""
    if not pictures or result.row.seed_to is not None:
        return 0.0
    known = task.prepare(from_pixels(torch.tensor(pictures[result.row.group].pixels)[None]))
    return float(task.known_error(from_pixels(torch.tensor(image)[None]), known))


def _lpips(
    model: Model, pixels: Sequence[np.ndarray], truths: Sequence[np.ndarray | None]
) -> tuple[list[float | None], str | None]:
    """LPIPS to the truth of each result that has one, where the weights are here; and why not otherwise."""
    out: list[float | None] = [None] * len(pixels)
    at = [i for i, truth in enumerate(truths) if truth is not None]
    if not at:
        return out, None
    from cmray.metrics.lpips import LPIPS

    distance = LPIPS.model_validate({})
    try:
        distance.check(model.shape)
    except MissingWeightsError as error:
        return out, f"no LPIPS, whose weights {error.file} are not here; `cmray doctor` says how to get them"
    except DataError as error:
        return out, f"no LPIPS: {error}"
    measure = distance.build(model.device)
    for i in at:
        a, b = (from_pixels(torch.tensor(x)[None]).to(model.device) for x in (pixels[i], truths[i]))
        with torch.no_grad():
            out[i] = float(measure(a, b))
    return out, None


def _title(trial: str, model: Model, task: EditingTask, results: Sequence[Result]) -> str:
    first = results[0]
    several = len({result.times for result in results}) > 1
    levels = f"{first.times[0]:.3g}" + (f" to {first.times[-1]:.3g}" if len(first.times) > 1 else "")
    sigma = "" if several else f", σ {levels}"
    return f"{task.name}, {trial}, {model.weights}, {first.nfe} NFE{sigma}"


def _notes(
    task: EditingTask, pictures: Sequence[Picture], facts: Sequence[EditedImage], lpips_note: str | None
) -> list[str]:
    notes = []
    said = [f["psnr_db"] for f in facts if f["psnr_db"] is not None]
    if said:
        given = [f["psnr_given_db"] for f in facts if f["psnr_given_db"] is not None]  # none where it equals the truth
        also = [f["lpips"] for f in facts if f["psnr_db"] is not None and f["lpips"] is not None]
        notes.append(
            f"PSNR to the input {np.mean(said):.1f} dB on average"
            + (f", of what the model was given {np.mean(given):.1f} dB" if given else "")
            + (f"; LPIPS {np.mean(also):.3f}" if also else "")
        )
    if pictures and task.name in ("inpaint", "colorize", "superres"):
        worst, written = (max(f[key] for f in facts) for key in ("known_error", "known_error_8_bit"))
        notes.append(
            f"the known part is kept to {worst:.1g}, in 8-bit files to {written:.1g} (values from -1 to 1)"
            if worst or written
            else "the known part is kept to the bit"
        )
    resized = sorted({f"{p.size[0]}x{p.size[1]}" for p in pictures if p.size != p.pixels.shape[1:] and not p.small})
    if resized:
        notes.append(
            f"inputs of {', '.join(resized[:4])} were resized to {'x'.join(map(str, pictures[0].pixels.shape[1:]))}"
        )
    if lpips_note:
        notes.append(lpips_note)
    return notes


def _overview(
    task: EditingTask,
    pictures: Sequence[Picture],
    results: Sequence[Result],
    pixels: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
    facts: Sequence[EditedImage],
) -> dict[str, Any]:
    """Rows, captions and labels of the picture that shows everything."""
    rows: list[list[np.ndarray]] = []
    captions: list[list[str]] = []
    labels: list[str] = []
    indices = sorted(range(len(results)), key=lambda i: (results[i].row.group, results[i].row.seed))
    if task.name == "interpolate":
        for _, way in itertools.groupby(indices, key=lambda i: results[i].row.group):
            at = list(way)
            ends = results[at[0]].row
            shown = [(p.pixels, p.name) for p in pictures]
            rows.append([*[s[0] for s in shown[:1]], *[pixels[i] for i in at], *[s[0] for s in shown[1:]]])
            texts = [f"α {results[i].row.alpha:.2f}" for i in at]
            captions.append([*["input"] * len(shown[:1]), *texts, *["input"] * len(shown[1:])])
            labels.append(f"seed {ends.seed} to {ends.seed_to}")
        return {"rows": rows, "captions": captions, "row_labels": labels}
    if task.name == "denoise":
        for (group, seed), ladder in itertools.groupby(
            indices, key=lambda i: (results[i].row.group, results[i].row.seed)
        ):
            at = sorted(ladder, key=lambda i: results[i].times[0])
            rows += [
                [pictures[group].pixels, *[seen[i] for i in at]],
                [pictures[group].pixels, *[pixels[i] for i in at]],
            ]
            captions.append(["input", *[f"σ {results[i].times[0]:g}" for i in at]])
            captions.append(["input", *[_decibels("", facts[i]["psnr_db"]) for i in at]])
            labels += ["given", f"denoised, seed {seed}"]
        return {"rows": rows, "captions": captions, "row_labels": labels}
    for group, of_input in itertools.groupby(indices, key=lambda i: results[i].row.group):
        at = list(of_input)
        truth = facts[at[0]]["psnr_given_db"] is not None
        given = _decibels("given", facts[at[0]]["psnr_given_db"]) if truth else "given"
        first = [] if task.name == "stroke" else [pictures[group].pixels]
        rows.append([*first, seen[at[0]], *[pixels[i] for i in at]])
        texts = [_decibels(f"seed {results[i].row.seed}", facts[i]["psnr_db"]) for i in at]
        captions.append(
            [*(["input" + " = truth" * truth] if first else []), "painting" if not first else given, *texts]
        )
        labels.append(pictures[group].name[:24])
    return {"rows": rows, "captions": captions, "row_labels": labels}


def _decibels(text: str, value: float | None) -> str:
    return text if value is None else f"{text}, {value:.1f} dB" if text else f"{value:.1f} dB"


def _folder(
    out: Path,
    told: Edited,
    title: str,
    overview: dict[str, Any],
    pictures: Sequence[Picture],
    results: Sequence[Result],
    pixels: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
) -> None:
    with beside(out) as tmp:
        tmp.mkdir()
        side_by_side(**overview, path=tmp / "overview.png", title=title)
        ladder = len({result.times for result in results}) > 1
        for result, image, given, fact in zip(results, pixels, seen, told["results"], strict=True):
            row = result.row
            if row.seed_to is not None:
                name = f"way{row.group}-{row.seed}-{row.seed_to}-frame{row.image:03d}"
            else:
                name = f"{row.group:03d}-{pictures[row.group].name}"
                _save(given, tmp / f"{name}-given{f'-{result.times[0]:g}' * ladder}.png")
                name += f"-seed{row.seed}" + f"-{result.times[0]:g}" * ladder
            _save(image, tmp / f"{name}.png")
            fact["file"] = f"{name}.png"
        for group in sorted({r.row.group for r in results if r.row.seed_to is not None}):
            animation(
                [p for p, r in zip(pixels, results, strict=True) if r.row.group == group], tmp / f"way{group}.gif"
            )
        (tmp / "edit.json").write_text(json.dumps(told, indent=1) + "\n")


def _save(pixels: np.ndarray, file: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file)
