"""The tab Interpolate: a slider that one drags along the way from one seed's image to another's."""

from __future__ import annotations

from typing import Any

import gradio as gr

from cmray.core.errors import CmrayError
from cmray.studio import values
from cmray.studio.shelf import Shelf
from cmray.studio.ways import Ways, large, strip
from cmray.studio.widgets import (
    LIVE,
    QUICK,
    changed,
    classes_label,
    labels_box,
    line,
    picture,
    run_chooser,
    seed_slider,
    sentence,
)

_FRAMES, _MOST_FRAMES, _MOST_STEPS = 33, 97, 40


def interpolate_page(shelf: Shelf, tab: gr.Tab) -> None:
    ways = Ways(shelf)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            run = run_chooser(shelf, "interpolate")
            a = seed_slider("interpolate-a", 3, "from seed")
            b = seed_slider("interpolate-b", 8, "to seed")
            count = gr.Slider(
                2, _MOST_FRAMES, value=_FRAMES, step=1, precision=0, label="frames", elem_id="interpolate-frames"
            )
            steps = gr.Slider(
                0, _MOST_STEPS, value=0, step=1, precision=0, label="steps", elem_id="interpolate-steps",
                info="0 takes the usual number of noise levels: one of a consistency model, 18 of a teacher",
            )  # fmt: skip
            labels = labels_box(shelf, "interpolate")
        with gr.Column(scale=3, min_width=320):
            at = gr.Slider(0, 1, value=0.5, step=0.005, label="drag: from one to the other", elem_id="interpolate-at")
            shown, said = picture("interpolate"), line("interpolate")
            overview = picture("interpolate-strip")

    def show(name: str, a: int, b: int, count: int, steps: int, labels: str, at: float) -> tuple[Any, Any, str]:
        try:
            frames, seconds = ways.frames(name, (a, b), count, int(steps or 0) or None, labels)
        except CmrayError as error:
            return gr.skip(), gr.skip(), sentence(error)
        place = round(min(max(at or 0, 0), 1) * (len(frames) - 1))
        words = ["edit", "interpolate", name, "--between", f"{a},{b}", "--frames", str(len(frames))]
        words += ["--steps", str(steps)] if steps else []
        words += ["--class", ",".join(map(str, values.labels(labels) or []))] if labels else []
        text = f"{len(frames)} frames, computed in {values.seconds(seconds)}, then only looked at"
        command = shelf.command(*words, "--out", "way.gif")
        caption = f"seed {a} to {b}, α {place / (len(frames) - 1):.2f}"
        return large(frames[place], caption), strip(frames, place), f"{text}\n\n`{command}`"

    def choose(name: str) -> Any:
        entry = shelf.entry(name)
        return gr.update(value="", visible=bool(entry.num_classes), label=classes_label(entry.num_classes))

    asked, out = [run, a, b, count, steps, labels, at], [shown, overview, said]
    tab.select(show, asked, out, **LIVE)
    for field in (a, b, count, steps, labels, at):
        changed(field)(show, asked, out, **LIVE)
    run.input(choose, run, labels, **QUICK).then(show, asked, out, **LIVE)
