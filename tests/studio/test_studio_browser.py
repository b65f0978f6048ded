"""The studio in a headless Chromium, clicked through: all that is asserted is on the screen."""

from __future__ import annotations

import itertools
import json
import time
from urllib.parse import urlparse

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from cli_run import Running, closed_port
from driving import Person
from PIL import Image
from test_studio_samples import cells

from cmray.cli.studio import _meant

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine")]


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    port = closed_port()
    names = ("all", models.classes)
    arguments = ("studio", *names, "--port", port, "--no-open", "--storage", models.storage)
    with Running(tmp_path_factory.mktemp("desk"), *arguments) as running:
        running.until(lambda: "Ctrl-C ends it" in running.text(), "its address", 120)
        yield f"http://127.0.0.1:{port}"
        ends = {c.raddr.ip for p in running.left() for c in p.net_connections("inet") if c.raddr}
        assert ends <= {"127.0.0.1"}, "the server talks to nobody else"
        running.ctrl_c()
        ran = running.ended(30)
        assert (ran.code, ran.err.strip()) == (0, "starting"), ran.err


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def person(browser, address):
    person = Person(browser, address)
    yield person
    asked = [url for url in browser.requested() if not url.startswith(("data:", "blob:"))]
    assert {urlparse(url).netloc for url in asked} == {urlparse(address).netloc}
    wrong = [
        line for line in browser.complaints() if '"level": "error"' in line or '"type": "error"' in line
        or "exceptionDetails" in line
    ]  # fmt: skip
    assert wrong == [], "\n".join(wrong)


def test_sampling(person, models):
    first = person.array("sample-picture")
    np.testing.assert_array_equal(
        cells(person.pixels("sample-picture"), 4, 4).reshape(16, 8, 8)[:4],
        sampled(models, 0, 4),
    )
    before = person.source("sample-picture")
    person.write("sample-seed", "7")
    there = person.sees("sample-picture", before)
    seventh = person.array("sample-picture")
    assert (seventh != first).any()
    person.write("sample-seed", "0")
    person.sees("sample-picture", there)
    np.testing.assert_array_equal(person.array("sample-picture"), first, "the same seed, the same images")


def sampled(models, seed: int, count: int) -> np.ndarray:
    with models.shelf(models.student).using(models.student) as model:
        return model.sample(count, seed=seed, uint8=True, block=16).numpy()[:, 0]


def test_a_slider_that_is_dragged_redraws_on_the_way(person):
    left, top, width, height = person.box("document.querySelector('#sample-seed input[type=range]')")
    seen = set()
    y = top + height / 2
    person._mouse("mouseMoved", left + 8, y)
    person._mouse("mousePressed", left + 8, y)
    for i in range(25):
        person._mouse("mouseMoved", left + 8 + i * (width - 16) / 25, y)
        time.sleep(0.1)
        seen.add(person.source("sample-picture"))
    assert len(seen) >= 5, "images follow while the button is still down"
    person._mouse("mouseReleased", left + width - 8, y)


def test_steps_times_and_the_way_there(person):
    before = person.source("sample-picture")
    person.write("sample-nfe", "3")
    before = person.sees("sample-picture", before)
    person.line("sample", "3 network evaluations")
    person.choose("sample-source", "given")
    before = person.sees("sample-picture", before)
    assert "--times 80,0.8" in person.line("sample", "multistep at σ 80, 0.8")
    person.write("sample-times", "80, 5, 0.5")
    before = person.sees("sample-picture", before)
    person.line("sample", "multistep at σ 80, 5, 0.5 · 3 network evaluations")
    left, top, width, height = person.box("document.querySelector('#sample-last input[type=range]')")
    y = top + height / 2
    person.drag([(left + width * 0.57, y), (left + width * 0.5, y), (left + width * 0.45, y)], 0.2)
    person.sees("sample-picture", before)
    assert "80, 5, 0.5 " not in person.line("sample", "multistep at σ 80, 5, 0.")
    kept = person.array("sample-picture")
    for text, words in (("1, 80", "descend"), ("200, 1", "200"), ("80, x", "'80, x'")):
        person.write("sample-times", text)
        said = person.line("sample", words)
        assert "⚠ " in said
        assert "Traceback" not in person.text()
    np.testing.assert_array_equal(person.array("sample-picture"), kept, "the last good picture stays")
    person.write("sample-times", "80, 2")
    person.line("sample", "multistep at σ 80, 2")
    person.click("document.querySelector('#sample-ways input')")
    person.sees("sample-strip")
    strip = person.array("sample-strip")
    assert strip.shape[0] > 6 * 64
    assert strip.shape[1] > 3 * 64


def test_another_model_offers_what_it_takes(person, models):
    def take(title: str) -> None:
        person.click("document.querySelector('#sample-run input')")
        person.click(f"[...document.querySelectorAll('#sample-run [role=option], [role=option]')].find("
                     f"(e) => e.innerText.trim().endsWith({json.dumps(title)}))")  # fmt: skip

    before = person.source("sample-picture")
    take("edm")
    before = person.sees("sample-picture", before)
    person.line("sample", "35 network evaluations")
    assert "--nfe 35" in person.line("sample", "cmray sample teacher/")
    options = "[...document.querySelectorAll('#sample-source label')].filter((e) => e.offsetWidth).length"
    assert person.browser.ask(options) == 0, "a teacher's times are not given"
    take(_meant(models.classes, models.storage, None)[0].label or models.classes)
    before = person.sees("sample-picture", before)
    person.write("sample-labels", "3")
    person.sees("sample-picture", before)
    person.line("sample", "--class 3")
    person.write("sample-labels", "12")
    assert "labels are 0 to 9" in person.line("sample", "⚠")


def test_comparing(person, models):
    person.tab("Compare")
    before = person.sees("compare-picture")
    person.line("compare", "cd · N=9")
    rows = cells(person.pixels("compare-picture"), 4, 8)
    assert all((rows[i] != rows[0]).any() for i in range(1, 4)), "four models"
    person.choose("compare-runs", "edm")
    before = person.sees("compare-picture", before)
    fewer = cells(person.pixels("compare-picture"), 3, 8)
    np.testing.assert_array_equal(fewer[:2], rows[:2])
    person.write("compare-seed", "5")
    before = person.sees("compare-picture", before)
    moved = cells(person.pixels("compare-picture"), 3, 8)
    np.testing.assert_array_equal(moved[:, :3], fewer[:, 5:], "a column is a seed")
    for title in ("cd · N=9", "ct · N=9"):
        person.choose("compare-runs", title)
        before = person.sees("compare-picture", before)
    person.choose("compare-runs", _meant(models.classes, models.storage, None)[0].label or models.classes)
    person.line("compare", "⚠ choose at least one model")


def draw(person, editor: str, across: list[tuple[float, float]]) -> None:
    """A stroke through points in fractions of the image that lies in the middle of an editor."""
    left, top, width, height = person.box(f"document.querySelector('#{editor} canvas')")
    time.sleep(1.5)  # the editor fits the image to its size
    left, top, width, height = person.box(f"document.querySelector('#{editor} canvas')")
    side = min(width, height) - 70
    points = [(left + width / 2 + side * (x - 0.5), top + height / 2 + side * (y - 0.5)) for x, y in across]
    person.drag([points[0], *(p for a, b in itertools.pairwise(points) for p in between(a, b))])


def between(a: tuple[float, float], b: tuple[float, float]) -> list[tuple[float, float]]:
    return [(a[0] + (b[0] - a[0]) * i / 8, a[1] + (b[1] - a[1]) * i / 8) for i in range(1, 9)]


def test_a_drawn_mask_is_filled_and_the_rest_stays(person):
    from cmray.datasets import datasets
    from cmray.datasets.whole import load_whole

    digit = load_whole(datasets.parse("digits")).images[12, 0]
    person.tab("Edit")
    person.until("!!document.querySelector('#edit-mask canvas')")
    person.click("document.querySelector('#edit-go')")
    person.line("edit", "there is no mask yet")
    person.write("edit-number", "12")
    person.until("!document.querySelector('#edit-line').innerText.trim()")
    draw(person, "edit-mask", [(0.4, 0.4), (0.6, 0.4), (0.6, 0.6)])
    before = person.sees("edit-picture")
    person.line("edit", "the known part is kept to the bit")
    shown = cells(person.pixels("edit-picture"), 1, 5)[0]
    np.testing.assert_array_equal(shown[0], digit)
    hole = (shown[1] != digit) | (shown[2:] != digit).any(0)
    assert 2 <= hole.sum() <= 24, "about where the brush was"
    assert not hole[:2].any()
    assert not hole[:, :1].any()
    assert (shown[2] != shown[3]).any()
    person.write("edit-seed", "9")
    person.sees("edit-picture", before)
    again = cells(person.pixels("edit-picture"), 1, 5)[0]
    np.testing.assert_array_equal(again[:2], shown[:2])
    assert (again[2:] != shown[2:]).any()
    assert ((again[2:] != digit).any(0) <= hole).all()


def test_a_painting_becomes_an_image(person):
    person.tab("Edit")
    person.choose("edit-source", "black")
    person.choose("edit-task", "stroke")
    person.until("!!document.querySelector('#edit-paint canvas')")
    draw(person, "edit-paint", [(0.5, 0.25), (0.5, 0.75)])
    before = person.sees("edit-picture")
    shown = cells(person.pixels("edit-picture"), 1, 4)[0]
    assert shown[0].max() > 100, "the painting"
    assert (shown[0] == 0).mean() > 0.4
    assert (shown[1:] != shown[0]).any((1, 2)).all()
    person.write("edit-level", "10")
    person.sees("edit-picture", before)
    person.line("edit", "σ 10, ")
    person.write("edit-level", "500")
    assert "at most sigma_max 80" in person.line("edit", "⚠")


def test_a_file_that_is_made_large_from_small(person, tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save(file)
    person.tab("Edit")
    person.choose("edit-task", "superres")
    person.sees("edit-picture")
    person.choose("edit-source", "a file")
    person.line("edit", "there is no file yet")
    person.until("!!document.querySelector('#edit-file input[type=file]')")
    root = person.browser.send("DOM.getDocument", depth=-1)["root"]["nodeId"]
    node = person.browser.send("DOM.querySelector", nodeId=root, selector="#edit-file input[type=file]")["nodeId"]
    person.browser.send("DOM.setFileInputFiles", nodeId=node, files=[str(file)])
    person.sees("edit-picture")
    person.line("edit", "superres with 3 results")
    shown = cells(person.pixels("edit-picture"), 1, 5)[0]
    gray = np.asarray(Image.open(file).convert("L")).astype(int)
    assert np.abs(shown[0].astype(int) - gray).max() <= 1
    before = person.source("edit-picture")
    person.choose("edit-task", "denoise")
    person.sees("edit-picture", before)
    person.line("edit", "denoise with ")


def test_dragging_along_a_way(person):
    person.tab("Interpolate")
    person.sees("interpolate-picture")
    person.line("interpolate", "33 frames")
    left, top, width, height = person.box("document.querySelector('#interpolate-at input[type=range]')")
    y, seen = top + height / 2, []
    person._mouse("mouseMoved", left + width / 2, y)
    person._mouse("mousePressed", left + width / 2, y)
    for i in range(12):
        person._mouse("mouseMoved", left + width / 2 + i * width / 25, y)
        time.sleep(0.15)
        seen.append(person.source("interpolate-picture"))
    person._mouse("mouseReleased", left + width / 2 + 12 * width / 25, y)
    assert len(set(seen)) >= 5
    before = person.source("interpolate-picture")
    person.write("interpolate-at", "0")
    before = person.sees("interpolate-picture", before)
    start = cells(person.pixels("interpolate-picture"), 1, 1)[0, 0]
    strip = cells(person.pixels("interpolate-strip-picture"), 1, 11)[0]
    np.testing.assert_array_equal(strip[0], start)
    person.write("interpolate-at", "1")
    person.sees("interpolate-picture", before)
    np.testing.assert_array_equal(strip[-1], cells(person.pixels("interpolate-picture"), 1, 1)[0, 0])
