"""The tab Compare: models beside each other from the same noise."""

from __future__ import annotations

from typing import Any

import gradio as gr

from cmray.studio import samples
from cmray.studio.samples import MOST_BESIDE, Wish
from cmray.studio.shelf import Shelf
from cmray.studio.widgets import SLOW, answered, changed, classes_label, line, picture, seed_slider

#: models that are chosen when the page opens
_AT_FIRST = 8


def compare_page(shelf: Shelf, tab: gr.Tab) -> None:
    entries = [shelf.entry(name) for name in shelf.names]
    alike = [entry.name for entry in entries if entry.shape == entries[0].shape]
    most_classes = max(entry.num_classes for entry in entries)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            runs = gr.CheckboxGroup(shelf.choices, value=alike[:_AT_FIRST], label="models", elem_id="compare-runs")
            seed = seed_slider("compare-seed")
            count = gr.Slider(1, MOST_BESIDE, value=8, step=1, precision=0, label="images", elem_id="compare-count")
            own = gr.Checkbox(
                False, label="each as it is usually sampled", elem_id="compare-own",
                info="one step of a consistency model, 35 evaluations of a teacher",
            )  # fmt: skip
            nfe = gr.Slider(1, 79, value=1, step=2, precision=0, label="network evaluations", elem_id="compare-nfe")
            labels = gr.Textbox(
                "", label=classes_label(most_classes), visible=most_classes > 0, max_lines=1, elem_id="compare-labels"
            )
        with gr.Column(scale=3, min_width=320):
            shown, said = picture("compare"), line("compare")

    def draw(names: list[str], seed: int, count: int, own: bool, nfe: int, labels: str) -> tuple[Any, str]:
        wish = Wish(seed, count, nfe, labels=labels)
        in_order = [name for name in shelf.names if name in names]
        return answered(lambda: samples.compare(shelf, in_order, wish, own))

    asked, out = [runs, seed, count, own, nfe, labels], [shown, said]
    tab.select(draw, asked, out, **SLOW)
    for field in (runs, seed, count, own, nfe, labels):
        changed(field)(draw, asked, out, **SLOW)
