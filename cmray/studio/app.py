"""The page as a whole."""

from __future__ import annotations

import gradio as gr
from gradio import themes

from cmray.core.version import __version__
from cmray.studio.page_compare import compare_page
from cmray.studio.page_edit import edit_page
from cmray.studio.page_interpolate import interpolate_page
from cmray.studio.page_sample import sample_page
from cmray.studio.shelf import Shelf

#: pixels stay squares, however large a picture is shown
CSS = """
.crisp img, .crisp canvas { image-rendering: pixelated; }
.crisp img { object-fit: contain; object-position: left top; }
.line { min-height: 3em; }
footer { display: none !important; }
"""
#: seconds between two looks for pictures to delete, and their age
_CACHE = (120, 300)


def build(shelf: Shelf) -> gr.Blocks:
    """All tabs; nothing is computed before a browser asks."""
    with gr.Blocks(title="cmray studio", analytics_enabled=False, delete_cache=_CACHE, fill_width=True) as blocks:
        gr.Markdown(f"### cmray studio <small>{__version__}, on this machine only</small>")
        with gr.Tab("Sample", id="sample"):
            sample_page(shelf, blocks)
        with gr.Tab("Compare", id="compare") as tab:
            compare_page(shelf, tab)
        with gr.Tab("Edit", id="edit") as tab:
            edit_page(shelf, tab)
        with gr.Tab("Interpolate", id="interpolate") as tab:
            interpolate_page(shelf, tab)
    return blocks


def theme() -> themes.Base:
    """Fonts that are on the machine: gradio's own would be asked for from a server."""
    return themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
