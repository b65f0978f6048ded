"""The house rules: imports go downward, everything below cluster/ works without ray and mlflow, files stay short."""

import ast
import json
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "cmray"
PLAIN = [
    "core",
    "solvers",
    "nn",
    "objectives",
    "samplers",
    "editing",
    "datasets",
    "metrics",
    "stopping",
    "config",
    "engine",
    "search",
    "tracking",
    "theory",
    "report",
    "exchange",
    "studio",
]

IMPORT_ALL = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for blocked in ("ray", "mlflow"):
    try:
        importlib.import_module(blocked)
    except ImportError:
        continue
    sys.exit(f"{blocked} could be imported: the test blocks nothing")

done = []
def walk(name):
    module = importlib.import_module(name)
    done.append(name)
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        walk(f"{name}.{info.name}")

for room in sys.argv[1:]:
    walk(f"cmray.{room}")
print("\\n".join(done))
"""


def linter():
    return tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]


def test_imports_go_downward_only():
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed (pip install -e '.[dev]')")
    done = subprocess.run([tool, "--no-cache"], cwd=REPO, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "0 broken" in done.stdout


def test_every_room_has_a_floor():
    """A package that no contract names is a package that no contract watches."""
    contracts = {contract["name"]: contract for contract in linter()["contracts"]}
    layers = contracts["imports go downward only"]["layers"]
    named = {room.strip().removeprefix("cmray.") for layer in layers for room in layer.split(":")}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= named, f"in no layer of pyproject.toml: {sorted(rooms - named)}"
    no_ray = {m.removeprefix("cmray.") for m in contracts["only cluster imports ray"]["source_modules"]}
    assert no_ray == named - {"cluster", "cli"}
    assert set(PLAIN) == no_ray


def test_everything_below_cluster_imports_without_ray_and_mlflow():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *PLAIN], cwd=REPO, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = {
        ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
        for room in PLAIN
        for path in (PACKAGE / room).rglob("*.py")
    }
    assert set(done.stdout.split()) == files, "a file is not importable as a module of its package"


def imported(path: Path) -> set[str]:
    """Packages that a file imports anywhere, also inside its functions and for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        found |= {name.partition(".")[0] for name in names}
    return found


def test_ray_and_mlflow_are_imported_in_their_rooms_only():
    files = {path.relative_to(PACKAGE).as_posix(): imported(path) for path in PACKAGE.rglob("*.py")}
    assert {name for name, packages in files.items() if "mlflow" in packages} == {"tracking/mlflow.py"}
    assert {name.partition("/")[0] for name, packages in files.items() if "ray" in packages} == {"cluster"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_can_be_read_in_one_sitting(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{path.relative_to(REPO)} has {lines} lines; split it (400 at most)"


def test_the_drawing_of_the_floors_is_that_of_the_tree():
    module = runpy.run_path(str(REPO / "analysis" / "architecture.py"))
    file = REPO / "docs" / "images" / "architecture.json"
    now = module["imports"]()
    assert json.loads(file.read_text()) == now, "run `python analysis/architecture.py` and commit what it writes"
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.text["Description"] == module["digest"](now), "the picture is of another architecture.json"
    assert set(now["rooms"]) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_says_what_it_is_for_in_its_first_line(path):
    if path.name == "__main__.py":
        return
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert text[:1].isupper() or text[:1] == "`", f"{path.relative_to(REPO)} has no sentence at its top"
    assert text.split("\n\n")[0].rstrip().endswith((".", ":")), "its first paragraph is whole sentences"
