"""What makes a site of docs/ beyond mkdocs itself: the README is its first page, the changelog is a page, and files of
the repository that pages link to come along, so that the same relative links work on a code host and on the site."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
#: pages whose source lies outside of docs/
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
#: where linked files of the repository lie on the site
ELSEWHERE = "repository"
#: the page that lists the files of a folder that a page links to
LISTING = "files.md"

_LINK = re.compile(r"(\]\()([^)\s#]+)([^)]*\))")


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    linked = {target for file in files.documentation_pages() for target in _linked(file)}
    for target in sorted(t for t in linked if (ROOT / t).is_dir()):
        inside = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / target).rglob("*")) if p.is_file()]
        inside = [path for path in inside if "__pycache__" not in path]
        linked |= set(inside)
        names = "\n".join(
            f"- [{os.path.relpath(p, target)}]({os.path.relpath(_on_site(p), _folder(target))})" for p in inside
        )
        files.append(File.generated(config, f"{_folder(target)}/{LISTING}", content=f"# {target}\n\n{names}\n"))
    for target in sorted(t for t in linked if (ROOT / t).is_file() and not t.startswith("docs/") and t not in PAGES):
        files.append(File.generated(config, f"{ELSEWHERE}/{_name(target)}", content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are in the repository become those of the site."""
    source = _source(page.file)

    def rewritten(found: re.Match[str]) -> str:
        target = _target(source, found[2])
        if target is None:
            return found[0]
        return f"{found[1]}{os.path.relpath(_on_site(target), os.path.dirname(page.file.src_uri) or '.')}{found[3]}"

    return _LINK.sub(rewritten, markdown)


def _source(file: File) -> str:
    """Where a page's text lies in the repository."""
    return next((source for source, page in PAGES.items() if page == file.src_uri), f"docs/{file.src_uri}")


def _target(source: str, link: str) -> str | None:
    """The path in the repository that a page links to; None for links that are no file of it."""
    if ":" in link or link.startswith("/"):
        return None
    path = os.path.normpath(os.path.join(os.path.dirname(source), link))
    return path if (ROOT / path).exists() and path != "." else None  # others are left to mkdocs, which names them


def _on_site(target: str) -> str:
    if target in PAGES:
        return PAGES[target]
    if (ROOT / target).is_dir():
        return f"{_folder(target)}/{LISTING}"
    return target.removeprefix("docs/") if target.startswith("docs/") else f"{ELSEWHERE}/{_name(target)}"


def _folder(target: str) -> str:
    return target.removeprefix("docs/") if target.startswith("docs/") else f"{ELSEWHERE}/{target}"


def _name(target: str) -> str:
    """Markdown from outside comes as it is, not as a page."""
    return f"{target}.txt" if target.endswith(".md") else target


def _linked(file: File) -> set[str]:
    source = _source(file)
    targets = {_target(source, found[2]) for found in _LINK.finditer(file.content_string)}
    return {target for target in targets if target is not None}
