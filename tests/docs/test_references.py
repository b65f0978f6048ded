"""docs/cli.md, configuration.md and json.md are what the code says, and leave nothing out."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest
from cli_run import ROOT

import cmray
from cmray.core.registry import Registry


@pytest.fixture(scope="module")
def generators():
    """The modules beside analysis/reference.py."""
    sys.path.insert(0, str(ROOT / "analysis"))
    try:
        yield {name: importlib.import_module(f"reference_{name}") for name in ("cli", "config", "json", "text")}
    finally:
        sys.path.remove(str(ROOT / "analysis"))


def test_the_committed_references_are_what_the_code_says(tmp_path):
    """In a process of its own, elsewhere and on a narrow terminal."""
    script = ROOT / "analysis" / "reference.py"
    ran = subprocess.run(
        [sys.executable, str(script), "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path), "COLUMNS": "20", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_registry_is_in_the_configuration_reference(generators):
    for info in pkgutil.walk_packages(cmray.__path__, "cmray."):
        if not info.name.startswith(("cmray.__main__", "cmray.studio", "cmray.cluster")):
            importlib.import_module(info.name)
    known = {id(registry): registry.kind for registry in gc.get_objects() if isinstance(registry, Registry)}
    told = {id(registry) for _, registry, _ in generators["config"].COMPONENTS}
    ours = {i: kind for i, kind in known.items() if _belongs_to_cmray(i)}
    assert set(ours) == told, {kind for i, kind in ours.items() if i not in told}


def _belongs_to_cmray(identity: int) -> bool:
    """Whether a module of cmray holds the registry; tests make registries of their own."""
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("cmray.") and isinstance(m, ModuleType)]
    return any(id(value) == identity for module in modules for value in vars(module).values())


def test_every_component_and_every_field_of_a_file_is_told(generators):
    text = (ROOT / "docs" / "configuration.md").read_text()
    for title, registry, _ in generators["config"].COMPONENTS:
        for name in registry.names():
            assert f"### {title}: {name}\n" in text
    for _, config, _ in generators["config"].SECTIONS:
        for field in config.model_fields:
            assert f"| `{field}` |" in text


def test_every_command_is_told_with_usage_options_and_an_example(generators):
    text = (ROOT / "docs" / "cli.md").read_text()
    cli = generators["cli"]
    lines = [line for line, _ in cli.commands(cli.app)]
    assert len(lines) == 21
    for line, function in cli.commands(cli.app):
        part = text.split(f"## {line}\n")[1].split("\n## ")[0]
        assert cli.usage(line, function) in part
        assert "```bash" in part
        for name, _, info, _ in cli.parameters(function):
            if not isinstance(info, cli.ArgumentInfo):
                assert f"| `{cli.option(name, info)}` |" in part, (line, name)


def test_the_words_of_types_and_values(generators):
    words, value, table = (getattr(generators["text"], name) for name in ("words", "value", "table"))
    assert words(list[int]) == "list of whole numbers"
    assert words(float | None) == "number or null"
    assert words(tuple[int, str]) == "[whole number, text]"
    assert words(dict[str, float]) == "mapping to number"
    assert value((1, 2)) == "`[1, 2]`"
    assert value(1e-8) == "`1e-08`"
    assert table(("a", ""), [["x|y", "z"]]) == "| a | |\n| :--- | :--- |\n| x\\|y | z |"
