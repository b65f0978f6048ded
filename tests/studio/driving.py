"""A person at the studio's page: finds things, clicks, drags, draws and looks at pixels."""

from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from chromium import Chromium
from PIL import Image


class Person:
    """Drives one page of a browser; every wait is for something to be seen."""

    def __init__(self, browser: Chromium, address: str):
        self.browser = browser
        browser.open("about:blank", 1280, 1000)  # what the page before complains of when it goes is its own
        browser.open(address, 1280, 1000)
        self.sees("sample-picture")

    def until(self, expression: str, seconds: float = 20) -> Any:
        """The first true value of a JavaScript expression."""
        end = time.monotonic() + seconds
        while not (value := self.browser.ask(expression)):
            assert time.monotonic() < end, f"in {seconds} s there was no {expression}\n{self.text()}"
            time.sleep(0.05)
        return value

    def text(self) -> str:
        return self.browser.ask("document.body.innerText")

    def source(self, name: str) -> str:
        """The address of a picture, which is that of its content; empty where there is none."""
        return self.browser.ask(f"(document.querySelector('#{name} img') || {{}}).src || ''")

    def sees(self, name: str, other_than: str = "") -> str:
        """Waits for a picture, another than it was."""
        js = f"(document.querySelector('#{name} img') || {{}}).src"
        return self.until(f"{js} && {js} != {json.dumps(other_than)} && {js}")

    def pixels(self, name: str) -> Image.Image:
        """A picture as the browser has it."""
        data = self.until(f"""(async () => {{
            const image = document.querySelector('#{name} img');
            if (!image) return '';
            await image.decode();
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext('2d').drawImage(image, 0, 0);
            return canvas.toDataURL('image/png');
        }})()""")
        return Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")

    def array(self, name: str) -> np.ndarray:
        return np.asarray(self.pixels(name))

    def line(self, name: str, words: str) -> str:
        """Waits until a line says something."""
        js = f"document.querySelector('#{name}-line').innerText"
        return self.until(f"{js}.includes({json.dumps(words)}) && {js}")

    def tab(self, title: str) -> None:
        self.click(f"[...document.querySelectorAll('button[role=tab]')].find((e) => e.textContent.trim() == '{title}')")

    def choose(self, name: str, words: str) -> None:
        """Clicks a choice of a radio or checkbox group."""
        self.click(f"[...document.querySelectorAll('#{name} label')].find((e) => e.innerText.trim() == '{words}')")

    def click(self, element: str) -> None:
        """With the mouse, in the middle of an element that an expression finds."""
        left, top, width, height = self.box(element)
        x, y = left + width / 2, top + height / 2
        self._mouse("mouseMoved", x, y)
        self._mouse("mousePressed", x, y)
        self._mouse("mouseReleased", x, y)

    def box(self, element: str) -> list[float]:
        """Left, top, width and height of an element, scrolled to."""
        return self.until(f"""(() => {{
            const e = {element};
            if (!e) return null;
            e.scrollIntoView({{block: 'center'}});
            const box = e.getBoundingClientRect();
            return box.width ? [box.left, box.top, box.width, box.height] : null;
        }})()""")

    def drag(self, points: list[tuple[float, float]], pause: float = 0.03) -> None:
        """The mouse, pressed at the first point and let go at the last."""
        self._mouse("mouseMoved", *points[0])
        self._mouse("mousePressed", *points[0])
        for point in points[1:]:
            self._mouse("mouseMoved", *point)
            time.sleep(pause)
        self._mouse("mouseReleased", *points[-1])

    def write(self, name: str, value: str) -> None:
        """Types into a field in the place of what stands there, and leaves it."""
        field = f"document.querySelector('#{name} input[type=number], #{name} textarea, #{name} input')"
        self.click(field)
        self.browser.ask(f"{field}.select()")
        self.browser.send("Input.insertText", text=value)
        for kind in ("keyDown", "keyUp"):
            self.browser.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)

    def shot(self, path: Path) -> Path:
        return self.browser.screenshot(path)

    def _mouse(self, kind: str, x: float, y: float) -> None:
        self.browser.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1,
                          buttons=0 if kind == "mouseReleased" else 1)  # fmt: skip
