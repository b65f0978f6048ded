"""What the pages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from cmray.core.errors import CmrayError
from cmray.studio.samples import Answer
from cmray.studio.shelf import Shelf

#: most seeds of a slider; any other goes into its number field
SEEDS = 999
#: of every event that asks a model: one at a time, the newest wish of a dragged slider, nothing for other programs
LIVE: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "trigger_mode": "always_last",
    "show_progress": "hidden",
    "api_visibility": "private",
}
#: of events that a slow model may take a while for
SLOW: dict[str, Any] = {**LIVE, "show_progress": "minimal"}
#: of events that ask nobody
QUICK: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}


def run_chooser(shelf: Shelf, name: str) -> gr.Dropdown:
    return gr.Dropdown(shelf.choices, value=shelf.names[0], label="model", elem_id=f"{name}-run", filterable=False)


def seed_slider(name: str, value: int = 0, label: str = "seed") -> gr.Slider:
    return gr.Slider(0, SEEDS, value=value, step=1, precision=0, label=label, elem_id=name)


def labels_box(shelf: Shelf, name: str) -> gr.Textbox:
    """Seen where a model has classes."""
    first = shelf.entry(shelf.names[0])
    return gr.Textbox(
        "",
        label=classes_label(first.num_classes),
        placeholder="3 or 0, 1, 2; empty leaves them to the seeds",
        visible=bool(first.num_classes),
        max_lines=1,
        elem_id=f"{name}-labels",
    )


def classes_label(num_classes: int) -> str:
    return f"labels (0 to {num_classes - 1})" if num_classes else "labels"


def picture(name: str) -> gr.Image:
    """A result: its pixels as they are, never smoothed."""
    return gr.Image(
        show_label=False,
        interactive=False,
        format="png",
        type="pil",
        buttons=["download", "fullscreen"],
        elem_id=f"{name}-picture",
        elem_classes="crisp",
    )


def line(name: str) -> gr.Markdown:
    """How a result was made, or the one sentence that says why there is none."""
    return gr.Markdown(elem_id=f"{name}-line", elem_classes="line")


def changed(field: Any) -> Any:
    """The event of a field that a person changes; a line of text tells of typing by `change` only."""
    return field.change if isinstance(field, gr.Textbox) else field.input


def answered(call: Callable[[], Answer]) -> tuple[Any, str]:
    """A picture and its line; of a bad value one sentence, and the picture stays."""
    try:
        answer = call()
    except CmrayError as error:
        return gr.skip(), sentence(error)
    return answer.picture, answer.text


def sentence(error: CmrayError) -> str:
    return f"⚠ {error}"
