"""The tab Sample: images of one model, drawn again whenever something changes."""

from __future__ import annotations

import math
import random
from typing import Any

import gradio as gr

from cmray.core.errors import CmrayError
from cmray.studio import samples, values
from cmray.studio.samples import MOST, Wish, steps_of
from cmray.studio.shelf import Shelf
from cmray.studio.widgets import (
    LIVE,
    QUICK,
    SEEDS,
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


def sample_page(shelf: Shelf, blocks: gr.Blocks) -> None:
    first = shelf.entry(shelf.names[0])
    steps, noise = steps_of(first), first.run.noise
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            run = run_chooser(shelf, "sample")
            seed = seed_slider("sample-seed")
            another = gr.Button("another seed", size="sm", elem_id="sample-another")
            count = gr.Slider(1, MOST, value=16, step=1, precision=0, label="images", elem_id="sample-count")
            nfe = gr.Slider(
                steps.least, max(steps.most, steps.least + 1), value=steps.usual, step=steps.step, precision=0,
                label="network evaluations", interactive=steps.most > steps.least, elem_id="sample-nfe",
            )  # fmt: skip
            source = gr.Radio(
                _sources(shelf, shelf.names[0]), value="spread", label="noise levels", elem_id="sample-source",
                visible=first.kind == "consistency",
            )  # fmt: skip
            with gr.Group(visible=False) as given:
                times = gr.Textbox(
                    f"{noise.sigma_max:g}, 0.8", label="times", max_lines=1, elem_id="sample-times",
                    info=f"noise levels, descending, above {noise.sigma_min:g} and at most {noise.sigma_max:g}",
                )  # fmt: skip
                last = gr.Slider(
                    *_exponents(noise.sigma_min, noise.sigma_max), value=-0.1, step=0.01, label="last time, 10^x",
                    elem_id="sample-last",
                )  # fmt: skip
            labels = labels_box(shelf, "sample")
            ways = gr.Checkbox(False, label="the way there", elem_id="sample-ways")
        with gr.Column(scale=3, min_width=320):
            shown, said = picture("sample"), line("sample")
            strip = gr.Image(
                label="noisy states and what the network says of them", interactive=False, format="png", type="pil",
                visible=False, buttons=["download", "fullscreen"], elem_id="sample-strip", elem_classes="crisp",
            )  # fmt: skip

    asked: list[Any] = [run, seed, count, nfe, source, times, labels, ways]

    def draw(
        name: str, seed: int, count: int, nfe: int, source: samples.Source, times: str, labels: str, ways: bool
    ) -> tuple[Any, str, Any]:
        wish = Wish(seed, count, nfe, source, times, labels)
        image, text = answered(lambda: samples.sample(shelf, name, wish))
        if not ways:
            return image, text, gr.update(visible=False)
        try:
            return image, text, gr.update(value=samples.way(shelf, name, wish), visible=True)
        except CmrayError:  # `sample` has said it
            return image, text, gr.skip()

    def drag(exponent: float, times: str, *rest: Any) -> tuple[Any, ...]:
        """Writes the dragged level in the place of the last one."""
        try:
            others = values.levels(times)[:-1]
        except CmrayError as error:
            return times, gr.skip(), sentence(error), gr.skip()
        text = ", ".join(f"{t:g}" for t in [*others, float(f"{10**exponent:.3g}")])
        name, seed, count, nfe, source, labels, ways = rest
        return text, *draw(name, seed, count, nfe, source, text, labels, ways)

    def choose(name: str) -> tuple[Any, ...]:
        """What the fields offer for another model."""
        entry = shelf.entry(name)
        offered, noise = steps_of(entry), entry.run.noise
        low, high = _exponents(noise.sigma_min, noise.sigma_max)
        return (
            gr.update(
                minimum=offered.least, maximum=max(offered.most, offered.least + 1), step=offered.step,
                value=offered.usual, visible=True, interactive=offered.most > offered.least,
            ),
            gr.update(choices=_sources(shelf, name), value="spread", visible=entry.kind == "consistency"),
            gr.update(visible=False),
            gr.update(info=f"noise levels, descending, above {noise.sigma_min:g} and at most {noise.sigma_max:g}"),
            gr.update(minimum=low, maximum=high),
            gr.update(value="", visible=bool(entry.num_classes), label=classes_label(entry.num_classes)),
        )  # fmt: skip

    def levels_from(name: str, source: samples.Source, nfe: int) -> tuple[Any, Any]:
        """Shows the field for times; searched ones come with their number of evaluations."""
        try:
            known = samples.known_times(shelf, name) if source == "searched" else {}
        except CmrayError:  # `sample` says it
            known = {}
        wanted = next(iter(known)) if known and nfe not in known else nfe
        return gr.update(visible=source == "given"), gr.update(value=wanted, visible=source != "given")

    out = [shown, said, strip]
    blocks.load(draw, asked, out, **LIVE)
    for field in (seed, count, nfe, times, labels, ways):
        changed(field)(draw, asked, out, **LIVE)
    another.click(lambda: random.randint(0, SEEDS), None, seed, **QUICK).then(draw, asked, out, **LIVE)
    run.input(choose, run, [nfe, source, given, times, last, labels], **QUICK).then(draw, asked, out, **LIVE)
    source.input(levels_from, [run, source, nfe], [given, nfe], **QUICK).then(draw, asked, out, **LIVE)
    last.input(drag, [last, times, run, seed, count, nfe, source, labels, ways], [times, *out], **LIVE)


def _sources(shelf: Shelf, name: str) -> list[tuple[str, str]]:
    """Where the levels of a model may come from; searched ones where there are some."""
    try:
        known = samples.known_times(shelf, name)
    except CmrayError:  # a damaged record, which `cmray report` tells of
        known = {}
    searched = [(f"searched ({', '.join(map(str, known))} evaluations)", "searched")] if known else []
    return [("spread over the grid", "spread"), *searched, ("given", "given")]


def _exponents(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """The ends of a slider over log10 of the levels that a model knows; sigma_min itself is not one."""
    return math.ceil(math.log10(sigma_min) * 100 + 1e-6) / 100 + 0.01, math.floor(math.log10(sigma_max) * 100) / 100
