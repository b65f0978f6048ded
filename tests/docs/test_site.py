"""The site: built by one command without a warning, complete, and asking no other host for anything."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from chromium import PROGRAM, Chromium
from cli_run import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None,
    reason="mkdocs-material is not installed (pip install -c constraints.txt -e '.[docs]')",
)

#: what a browser fetches by itself: tag -> attributes
FETCHED = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "object": ("data",),
    "embed": ("src",),
    "use": ("href",),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return out


class Fetches(HTMLParser):
    """Collects what a page makes a browser fetch, and its inline styles and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._inside = tag in ("style", "script")
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        self.urls += [url for name in FETCHED.get(tag, ()) if (url := given.get(name))]
        self.inline += [style for style in [given.get("style")] if style]

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.inline.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def test_pages_fetch_nothing_from_other_hosts(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        found = Fetches()
        found.feed(page.read_text())
        for url in found.urls:
            assert not re.match(r"(https?:)?//", url), f"{page.name} fetches {url}"
        for text in found.inline:
            assert not re.search(r"(url\(|import\s|fetch\()['\"]?(https?:)?//", text), f"{page.name}: {text[:200]}"


def test_styles_fetch_nothing_from_other_hosts(site):
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text()), style.name


def test_no_page_has_a_drawing_that_would_be_rendered_by_a_foreign_script(site):
    assert not [page.name for page in site.rglob("*.html") if 'class="mermaid"' in page.read_text()]


def test_every_page_of_docs_is_there_and_the_readme_is_the_first(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
    first = (site / "index.html").read_text()
    assert "experiments/quickstart.yaml" in first
    assert 'href="quickstart.html"' in first
    assert 'src="images/quickstart-samples.png"' in first


def test_links_out_of_docs_lead_to_copies(site):
    cluster = (site / "cluster.html").read_text()
    assert 'href="repository/cluster.yaml"' in cluster
    assert (site / "repository" / "cluster.yaml").read_bytes() == (ROOT / "cluster.yaml").read_bytes()


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")
def test_a_browser_asks_this_site_only(site, tmp_path):
    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, Chromium(tmp_path / "profile") as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = f"http://127.0.0.1:{server.server_port}/"
        try:
            for name in ("index.html", "cli.html", "concepts.html"):
                browser.open(own + name, 1200, 800)
                browser.ask("new Promise(done => setTimeout(done, 500))")  # scripts that load more have done so
                asked = browser.requested()
                assert any(url.endswith(".js") for url in asked)
                assert all(url.startswith((own, "data:", "blob:")) for url in asked), asked
        finally:
            server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""
