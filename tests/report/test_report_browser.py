"""report.html in a real browser: on a phone, on a desk, in the dark and in print."""

from __future__ import annotations

import re

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from PIL import Image
from report_factory import figure_three, write

from cmray.report.build import write_report
from cmray.report.grids import image_grid
from cmray.report.load import load_experiment

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine")]

#: elements that stick out of the page to the right and lie in no box that scrolls
STICKING_OUT = """
[...document.querySelectorAll("body *")].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !e.closest(".scroll, pre, svg");
}).map((e) => e.outerHTML.slice(0, 80))
"""
LINKS = """
[...document.querySelectorAll("nav a")].map((a) => {
  a.click();
  const to = document.querySelector(a.getAttribute("href"));
  const top = to.getBoundingClientRect().top;
  const last = innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
  return [a.getAttribute("href"), location.hash, last || Math.abs(top) < 60];
})
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    write(folder, figure_three())
    record = load_experiment(folder, "fig3")
    images = np.random.default_rng(0).integers(0, 255, (64, 1, 8, 8), np.uint8)
    image_grid(images, record.folder / "samples/samples.png", columns=16, scale=5, row_labels=["a long label"] * 4)
    return write_report(record, folder / "out", published="cifar10")["report.html"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize(("width", "height", "dark"), [(390, 844, False), (390, 844, True), (1280, 900, False)])
def test_a_page_that_fits(browser, report, tmp_path, width, height, dark):
    browser.open(report.as_uri(), width, height, dark)
    assert browser.ask("document.documentElement.scrollWidth") <= width, browser.ask(STICKING_OUT)
    assert browser.ask(STICKING_OUT) == []
    assert browser.complaints() == []
    asked = [url for url in browser.requested() if not url.startswith("data:")]
    assert asked == [report.as_uri()]
    assert browser.ask("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    small = browser.ask("""Math.min(...[...document.querySelectorAll("p, li, td, th, small, figcaption")].map(
        (e) => parseFloat(getComputedStyle(e).fontSize)))""")
    assert small >= 11
    picture = np.asarray(Image.open(browser.screenshot(tmp_path / "page.png")).convert("L"))
    assert width - 20 <= picture.shape[1] <= width  # a desk has a scroll bar
    corner = int(picture[2, 2])
    assert corner < 60 if dark else corner > 200
    assert (np.abs(picture.astype(int) - corner) > 80).mean() > 0.01, "there is nothing to see"


def test_its_links_lead_somewhere(browser, report):
    browser.open(report.as_uri(), 1280, 900)
    browser.ask('document.documentElement.style.scrollBehavior = "auto"')
    followed = browser.ask(LINKS)
    assert len(followed) == 11
    for href, hash_, there in followed:
        assert href == hash_
        assert there, href
    outside = browser.ask("""[...document.querySelectorAll("[href], [src]")].map(
        (e) => e.getAttribute("href") || e.getAttribute("src")).filter((t) => !/^(#|data:)/.test(t))""")
    assert outside == []


def test_tables_sort_and_need_no_script_to_be_read(browser, report):
    browser.open(report.as_uri(), 1280, 900)
    labels = '[...document.querySelectorAll("#table tbody th")].map((e) => e.firstChild.textContent)'
    button = '[...document.querySelectorAll("#table thead button")].find((b) => b.textContent == "fd/digits · 1 NFE")'
    before = browser.ask(labels)
    browser.ask(f"{button}.click()")
    assert browser.ask(labels)[0] == "heun · digits · N=9 †"
    browser.ask(f"{button}.click()")
    assert browser.ask(labels)[0] == "edm teacher"
    without = {"euler · l2 · N=9", "ct · N=80 fixed", "ct · mu0=0.9"}
    assert set(browser.ask(labels)[-3:]) == without, "rows without a value stay last"
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(report.as_uri(), 1280, 900)
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.ask(labels) == before
    assert browser.ask('document.querySelectorAll("th button").length') == 0


def test_a_total_stays_last(browser, report):
    browser.open(report.as_uri(), 1280, 900)
    rows = '[...document.querySelectorAll("#cost tbody th")].map((e) => e.textContent)'
    for _ in range(2):
        browser.ask('document.querySelector("#cost thead button").click()')
        assert browser.ask(rows)[-1] == "total"


def test_it_prints(browser, report):
    browser.open(report.as_uri(), 1280, 900, dark=True)
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask('getComputedStyle(document.querySelector("nav")).display') == "none"
    data = browser.pdf()
    browser.send("Emulation.setEmulatedMedia", media="")
    assert data.startswith(b"%PDF-")
    pages = [int(count) for count in re.findall(rb"/Type\s*/Pages.*?/Count\s+(\d+)", data, re.DOTALL)]
    assert pages
    assert 2 <= max(pages) <= 14
