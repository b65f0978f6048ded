"""Pictures as text of a page: SVG that follows its colours, and data URIs."""

from __future__ import annotations

import base64
import html
import re
import struct
from pathlib import Path

from cmray.report import style

#: colours of the figures, and the page's names for them, which differ in light, dark and print
COLOURS = {
    **{colour.lower(): f"var(--c{i})" for i, colour in enumerate(style.PALETTE)},
    style.INK.lower(): "var(--ink)",
    style.SOFT.lower(): "var(--soft)",
    style.MUTED.lower(): "var(--muted)",
    style.FAINT.lower(): "var(--grid)",
    style.PAPER.lower(): "var(--paper)",
    "#000000": "var(--ink)",
}
#: marker of a line -> its outline in a square of 10
_SHAPES = {
    "o": '<circle cx="5" cy="5" r="3.4"/>',
    "s": '<path d="M2 2h6v6h-6z"/>',
    "^": '<path d="M5 1.4l4 7h-8z"/>',
    "D": '<path d="M5 .8l4 4.2-4 4.2-4-4.2z"/>',
    "v": '<path d="M5 8.6l4-7h-8z"/>',
    "P": '<path d="M3.6 1h2.8v2.6h2.6v2.8h-2.6v2.6h-2.8v-2.6h-2.6v-2.8h2.6z"/>',
    "X": '<path d="M1.2 3l1.8-1.8 2 2 2-2 1.8 1.8-2 2 2 2-1.8 1.8-2-2-2 2-1.8-1.8 2-2z"/>',
    "*": '<path d="M5 .6l1.2 3h3.2l-2.6 2 1 3.2-2.8-1.9-2.8 1.9 1-3.2-2.6-2h3.2z"/>',
}


def inline_svg(svg: str, prefix: str, label: str) -> str:
    """A figure's SVG as an element of a page.

    Args:
        svg: as `layout.page_svgs` gives it.
        prefix: of all its ids, which must be unique in the page.
        label: what a reader who does not see it is told.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"#[0-9a-fA-F]{6}\b", lambda found: COLOURS.get(found[0].lower(), found[0]), body)
    root = re.match(r"<svg[^>]*>", body)
    box = re.search(r'viewBox="([^"]+)"', root[0]) if root else None
    if root is None or box is None:
        raise ValueError("this is no SVG of a figure")
    head = f'<svg class="plot" viewBox="{box[1]}" role="img" aria-label="{html.escape(label)}">'
    return re.sub(r"\s*\n\s*", "\n", head + body[root.end() :]).strip()


def swatch(colour: str, marker: str, hollow: bool = False) -> str:
    """The sign of a line in a legend: its marker in its colour, or a dash for a level; hollow, on a dotted line."""
    stroke = COLOURS.get(colour.lower(), colour)
    if marker not in _SHAPES:
        line = f'<path d="M0 5h4m3 0h4m3 0h4" stroke="{stroke}" stroke-width="1.4"/>'
        return f'<svg class="swatch" viewBox="0 0 18 10" aria-hidden="true">{line}</svg>'
    dotted = ' stroke-dasharray="1.6 1.6"' if hollow else ""
    line = f'<path d="M0 5h18" stroke="{stroke}" stroke-width="1.6"{dotted}/>'
    inside = f'fill="var(--paper)" stroke="{stroke}" stroke-width="1.2"' if hollow else f'fill="{stroke}"'
    mark = f'<g transform="translate(4)" {inside}>{_SHAPES[marker]}</g>'
    return f'<svg class="swatch" viewBox="0 0 18 10" aria-hidden="true">{line}{mark}</svg>'


def data_uri(data: bytes, kind: str) -> str:
    """`data:` with the media type `kind`, in base64."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels. Raises ValueError for what is no PNG."""
    if len(data) < 24 or not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("this is no PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def read_png(path: Path) -> tuple[str, int, int] | None:
    """(data URI, width, height) of a PNG file; None where it is missing or none."""
    try:
        data = path.read_bytes()
        return data_uri(data, "image/png"), *png_size(data)
    except (OSError, ValueError):
        return None
