"""The tutorial of docs/extending.md: its code is the example's, its commands run, cmray's own tests cover it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from plugin_example import EXAMPLE, PROJECT, ROOT, environment, install_example, python

PAGE = (ROOT / "docs" / "extending.md").read_text()
#: runs command lines one after the other in one process and says how each ended
RUN = """
import json, sys
from cmray.cli.main import main
codes = []
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as end:
        codes.append(end.code)
json.dump(codes, open("codes.json", "w"))
"""


def blocks() -> dict[str, str]:
    """The files that the page shows."""
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```\n", PAGE, re.S))


def commands(name: str) -> list[list[str]]:
    (text,) = re.findall(rf"<!-- commands: {name} -->\n```bash\n(.*?)```\n", PAGE, re.S)
    return [shlex.split(line) for line in text.splitlines()]


def run(folder: Path, env: dict[str, str], lines: list[list[str]]) -> list[int]:
    done = python(folder, env, "-c", RUN, json.dumps(lines))
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads((folder / "codes.json").read_text())
    assert len(codes) == len(lines)
    assert not any(codes), done.stdout[-2000:] + done.stderr[-3000:]
    return codes


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return install_example(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A folder in which the page's paths exist."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(EXAMPLE, folder / "docs" / "extending", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_page_shows_the_files_as_they_are_and_all_of_them():
    shown = blocks()
    for name, text in shown.items():
        assert text == (ROOT / "docs" / name).read_text(), f"docs/extending.md shows another {name}"
    files = [p for p in EXAMPLE.rglob("*.*") if p.suffix in (".py", ".yaml", ".toml") and p.stem != "__init__"]
    wanted = {p.relative_to(ROOT / "docs").as_posix() for p in files if p.parent.name != "tests"}
    assert set(shown) == wanted


def test_the_package_announces_one_component_of_each_of_six_kinds(site, tmp_path):
    code = (
        "import json; from cmray.core.registry import from_plugins\n"
        "print(json.dumps(sorted([kind, name, plugin.title] for plugin, kind, name in from_plugins())))"
    )
    done = python(tmp_path, environment(site), "-c", code)
    title = f"{PROJECT['name']} {PROJECT['version']}"
    kinds = ["dataset blobs", "distance charbonnier", "editing task outpaint", "measure mean-shift",
             "objective cd-skip", "sampler lms-2"]  # fmt: skip
    assert [f"{kind} {name}" for kind, name, _ in json.loads(done.stdout)] == kinds
    assert {t for _, _, t in json.loads(done.stdout)} == {title}


def test_its_commands_run_and_records_name_the_plugin(site, clone):
    lines = commands("package")
    assert lines[:2] == [["pip", "install", "-e", "docs/extending"], ["cmray", "doctor"]]  # elsewhere
    run(clone, environment(site), [words[1:] for words in lines[2:]])
    for name in ("samples.png", "teacher.png", "outpaint.png", "data/blobs16/manifest.json"):
        assert (clone / name).is_file(), name
    (result,) = (clone / "cmray-data" / "blobs").glob("*/result.json")
    assert json.loads(result.read_text())["versions"][PROJECT["name"]] == PROJECT["version"]
    values = [json.loads(p.read_text()) for p in result.parent.glob("evaluations/*.json")]
    assert any(value["provenance"]["metric"].startswith("mean-shift") for value in values)

    # a model whose plug-in is not here
    gone = python(clone, environment(), "-m", "cmray", "sample", "blobs/cd-skip", "--out", "x.png")
    assert gone.returncode == 2
    (line,) = gone.stderr.strip().splitlines()
    assert f"was made with {PROJECT['name']} {PROJECT['version']}, which is not here: unknown objective" in line


def test_one_file_alone_is_enough(clone):
    (words,) = commands("file")
    name, _, value = words[0].partition("=")
    assert name == "CMRAY_PLUGINS"
    run(clone, environment(CMRAY_PLUGINS=value), [words[2:]])
    (result,) = (clone / "cmray-data" / "with-charbonnier").glob("*/result.json")
    assert json.loads(result.read_text())["versions"]["charbonnier.py"].startswith("sha256:")


def test_cmray_s_own_tests_cover_what_is_installed(site, tmp_path):
    tests = ["core/test_distances.py", "objectives/test_contract.py", "samplers/test_samplers.py",
             "editing/test_editing_contract.py", "metrics/test_measures_contract.py",
             "datasets/test_known_sources.py"]  # fmt: skip
    files = [ROOT / "tests" / name for name in tests]
    few = "not (charbonnier and (cd or continuous or ict or ect))"  # other objectives with the new distance: a few do
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--of-plugins", "-rA", "-k", few, *files]
    done = python(tmp_path, environment(site), *words)
    assert done.returncode == 0, done.stdout[-3000:]
    for file, name in zip(tests, ["charbonnier", "cd-skip", "lms-2", "outpaint", "mean-shift", "blobs"], strict=True):
        passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED") and file in line]
        assert any(name in line for line in passed), f"{file} does not look at {name}"
    assert "[l2]" not in done.stdout, "tests of cmray's own are left out"


def test_its_own_tests_pass(site, tmp_path):
    done = python(tmp_path, environment(site), "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLE / "tests")
    assert done.returncode == 0, done.stdout[-3000:]


def test_without_a_plugin_there_is_nothing_to_choose(tmp_path):
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--of-plugins", ROOT / "tests" / "core" / "test_ema.py"]
    done = python(tmp_path, environment(), *words)
    assert done.returncode == 4
    assert "--of-plugins: no plug-in is here; install one, or name its file in CMRAY_PLUGINS" in done.stderr
