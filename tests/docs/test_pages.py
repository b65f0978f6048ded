"""The pages: links lead somewhere, messages and commands that they quote exist, nothing is missing from lists."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from cli_run import ROOT
from packaging.requirements import Requirement
from shell_words import calls, check

PAGES = sorted((ROOT / "docs").rglob("*.md"))
OURS = [ROOT / "docs" / f"{name}.md" for name in ("concepts", "faq", "troubleshooting", "dependencies", "cli", "json")]


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts and mkdocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", head.replace("`", "").lower()).strip()) for head in heads}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for link, anchor in re.findall(r"\]\(([^)#\s:]*)(?:#([^)\s]*))?\)", page.read_text()):
        target = (page.parent / link).resolve() if link else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in slugs(target), f"{page.name} links to {link}#{anchor}"


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.stem)
def test_every_command_in_a_block_exists(page):
    found = [
        words
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.splitlines()
        for words in calls(line)
    ]
    for words in found:
        check(words)


def test_commands_within_sentences_exist():
    """`cmray ...` in the text of these pages: commands and options that cmray knows."""
    count = 0
    for page in OURS:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for line in re.findall(r"`(cmray [a-z][^`]*)`", text):
            if "..." in line or line in ("cmray jobs", "cmray data", "cmray features"):  # groups of commands
                continue
            (words,) = calls(line)
            check(words)
            count += 1
    assert count > 50


@cache
def literals() -> str:
    """Every string in cmray's code, with a mark where an f-string puts something in."""
    found = []
    for path in (ROOT / "cmray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def messages() -> list[str]:
    """The messages in the first cells of docs/troubleshooting.md."""
    rows = [r for r in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if r.startswith("| ")]
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


@pytest.mark.parametrize("message", messages())
def test_every_quoted_message_is_one_of_cmray(message):
    parts = [part.strip(" ;,:") for part in message.split("...")]
    fixed = [part for part in parts if len(part) > 3]
    assert fixed, "nothing of the message is fixed"
    for part in fixed:
        assert part in literals(), f"cmray says nothing like {part!r}"


def test_most_kinds_of_messages_are_told():
    assert len(messages()) > 60


def test_every_dependency_is_told_once_with_its_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always = [Requirement(text).name for text in project["dependencies"]]
    extras = {
        (requirement.name, extra)
        for extra, texts in project["optional-dependencies"].items()
        for requirement in map(Requirement, texts)
        if requirement.name != "cmray"
    }
    first, second = (ROOT / "docs" / "dependencies.md").read_text().split("## Extras")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in first.splitlines() if row[:3] == "| `"]
    assert [re.findall(r"`([^`]+)`", row[0])[0] for row in cells] == always
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in second.splitlines() if row[:3] == "| `"]
    assert {(row[0].strip("`"), row[1]) for row in rows} == extras
    assert all(row[1] and row[-1] for row in [*cells, *rows])


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(t for texts in project["optional-dependencies"].values() for t in texts)]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {re.sub("[-_.]+", "-", line.split("==")[0].lower()) for line in lines if "==" in line}
    names = {re.sub("[-_.]+", "-", Requirement(text).name.lower()) for text in wanted} - {"cmray"}
    assert names <= pinned, names - pinned
