"""The tab Edit: a mask or a stroke that one draws, or an image as it is, and what the model makes of it."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from cmray.core.errors import CmrayError
from cmray.studio import canvas, edits
from cmray.studio.edits import HINTS, MOST, Sources, default_level, factors_of, tasks_of
from cmray.studio.samples import Answer
from cmray.studio.shelf import Entry, Shelf
from cmray.studio.widgets import (
    QUICK,
    SLOW,
    answered,
    changed,
    classes_label,
    labels_box,
    line,
    picture,
    run_chooser,
    seed_slider,
    sentence,
)

_SOURCES = [
    ("its dataset", "dataset"),
    ("a sample", "sample"),
    ("a file", "file"),
    ("black", "black"),
    ("white", "white"),
]
_MASK, _PALETTE = (
    "#ff3b30",
    ["#c0c0c0", "#ffffff", "#808080", "#000000", "#d62728", "#2ca02c", "#1f77b4", "#ffbf00", "#8c564b"],
)
_MOST_STEPS = 80


def edit_page(shelf: Shelf, tab: gr.Tab) -> None:
    sources, first = Sources(shelf), shelf.entry(shelf.names[0])
    tasks = tasks_of(first)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            run = run_chooser(shelf, "edit")
            task = gr.Radio(tasks, value=next(iter(tasks), None), label="task", elem_id="edit-task")
            kind = gr.Radio(_SOURCES, value="dataset", label="image", elem_id="edit-source")
            number = gr.Number(0, label="number", precision=0, minimum=0, elem_id="edit-number")
            file = gr.File(label="file", type="filepath", file_types=["image"], visible=False, elem_id="edit-file")
            num = gr.Slider(1, MOST, value=3, step=1, precision=0, label="results", elem_id="edit-num")
            seed = seed_slider("edit-seed")
            steps = gr.Slider(
                0, _MOST_STEPS, value=0, step=1, precision=0, label="steps", elem_id="edit-steps",
                info="0 takes the task's own number of noise levels",
            )  # fmt: skip
            level = gr.Textbox("", label="noise level", max_lines=1, visible=False, elem_id="edit-level")
            factor = gr.Dropdown([], label="factor", visible=False, elem_id="edit-factor", filterable=False)
            labels = labels_box(shelf, "edit")
        with gr.Column(scale=3, min_width=320):
            hint = gr.Markdown(elem_id="edit-hint")
            mask = _editor("edit-mask", gr.Brush(default_size=40, colors=[_MASK], color_mode="fixed"))
            paint = _editor("edit-paint", gr.Brush(default_size=40, colors=list(_PALETTE)))
            plain = gr.Image(
                show_label=False, interactive=False, format="png", height=300, visible=False, elem_id="edit-plain",
                elem_classes="crisp", buttons=[],
            )  # fmt: skip
            again = gr.Button("edit", variant="primary", elem_id="edit-go")
            shown, said = picture("edit"), line("edit")
    source = gr.State(None)

    def choose(name: str, wanted: str | None) -> tuple[Any, ...]:
        """What the fields offer for a model and a task."""
        entry = shelf.entry(name)
        offered = tasks_of(entry)
        task = wanted if wanted in offered else next(iter(offered), None)
        factors = factors_of(entry)
        return (
            gr.update(choices=offered, value=task),
            gr.update(visible=task in ("stroke", "denoise"), **_level_texts(entry, task)),
            gr.update(choices=factors, value=4 if 4 in factors else next(iter(factors), None),
                      visible=task == "superres"),
            gr.update(visible=bool(entry.num_classes), label=classes_label(entry.num_classes)),
        )  # fmt: skip

    def load(name: str, task: str | None, kind: str, number: float | None, path: str | None) -> tuple[Any, ...]:
        """The image, on the canvas that the task needs."""
        hint = HINTS.get(task or "", "This model was distilled to fixed steps, which cannot edit.")
        seen = {"mask": task == "inpaint", "paint": task == "stroke", "plain": task not in ("inpaint", "stroke", None)}
        asks = (
            gr.update(visible=kind in ("dataset", "sample"), label="seed" if kind == "sample" else "number"),
            gr.update(visible=kind == "file"),
        )
        try:
            pixels = _source(sources, name, kind, number, path)
        except CmrayError as error:
            hidden = [gr.update(visible="hidden") for _ in seen]
            return None, *hidden, *asks, hint, gr.update(value=None), sentence(error)
        large = canvas.enlarged(pixels)
        # what is hidden keeps its value: gradio's editor stumbles over one that changes while it goes
        shown = [
            gr.update(value=large, visible=True) if there else gr.update(visible="hidden") for there in seen.values()
        ]
        return pixels, *shown, *asks, hint, gr.update(value=None), ""

    def edit(
        name: str, task: str | None, source: np.ndarray | None, mask: Any, paint: Any, num: int, seed: int,
        steps: int, level: str, factor: int | None, labels: str,
    ) -> tuple[Any, str]:  # fmt: skip
        def call() -> Answer:
            if task is None or source is None:
                raise CmrayError("there is nothing to edit yet; choose a task and an image")
            drawn = mask if task == "inpaint" else paint
            image, options = edits.options_of(task, source, drawn, level or "", factor)
            more = {"num": int(num), "seed": int(seed), "steps": int(steps or 0) or None, "labels": labels or ""}
            return edits.edit(shelf, name, task, image, options, **more)

        return answered(call)

    def edit_quietly(name: str, task: str | None, source: np.ndarray | None, mask: Any, paint: Any, *rest: Any) -> Any:
        """As soon as there is something to edit; before, no sentence: nobody has asked yet."""
        waits = task in ("inpaint", "stroke") and not canvas.touched(mask if task == "inpaint" else paint)
        if waits or source is None:
            return gr.skip(), gr.skip()
        return edit(name, task, source, mask, paint, *rest)

    def edit_undrawn(name: str, task: str | None, source: np.ndarray | None, *rest: Any) -> tuple[Any, Any]:
        """At once, where there is nothing to draw first."""
        if task in ("inpaint", "stroke", None) or source is None:
            return gr.skip(), gr.skip()
        return edit(name, task, source, *rest)

    fields, canvases = [run, task, kind, number, file], [source, mask, paint, plain, number, file, hint, shown, said]
    asked, out = [run, task, source, mask, paint, num, seed, steps, level, factor, labels], [shown, said]
    for event in (tab.select, run.input, task.input):
        event(choose, [run, task], [task, level, factor, labels], **QUICK).then(
            load, fields, canvases, **SLOW
        ).then(edit_undrawn, asked, out, **SLOW)  # fmt: skip
    for event in (kind.input, number.input, file.upload, file.clear):
        event(load, fields, canvases, **SLOW).then(edit_undrawn, asked, out, **SLOW)
    again.click(edit, asked, out, **SLOW)
    for field in (mask, paint, num, seed, steps, level, factor, labels):
        changed(field)(edit_quietly, asked, out, **SLOW)


def _editor(name: str, brush: gr.Brush) -> gr.ImageEditor:
    """A canvas over the enlarged image: brush, eraser, undo and nothing else."""
    return gr.ImageEditor(
        type="numpy", format="png", sources=(), transforms=(), layers=False, brush=brush, show_label=False,
        eraser=gr.Eraser(default_size=40), height=470, visible="hidden", elem_id=name, elem_classes="crisp", buttons=[],
    )  # fmt: skip


def _source(sources: Sources, name: str, kind: str, number: float | None, path: str | None) -> np.ndarray:
    if kind == "dataset":
        return sources.dataset(name, number)
    if kind == "sample":
        return sources.sampled(name, number)
    if kind == "file":
        return sources.file(name, path)
    return sources.empty(name, 0 if kind == "black" else 255)


def _level_texts(entry: Entry, task: str | None) -> dict[str, str]:
    if task == "stroke":
        usual = default_level(entry)
        info = f"where it begins, {usual:.3g} unless given; more gives a better image that follows the painting less"
        return {"label": "noise level", "placeholder": f"{usual:.3g}", "info": info, "value": ""}
    return {"label": "noise levels", "placeholder": "0.5, 2, 10", "info": "empty: a ladder", "value": ""}
