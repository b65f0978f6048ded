"""Tests the tests: applies each fault of analysis/mutants.toml to a copy of the tree and looks which test finds it.

    python analysis/mutants.py [--only WORD]... [--json FILE]

The working tree is never changed. Every fault gets a process of its own, forked from one that has imported libraries
but nothing of cmray, and runs the test files that the list names for it, up to the first failure. At the end all tests
that found something run on the unchanged copy, where each must pass. Exit code 1 when fewer than 95% of the faults are
found, 2 when the list or the unchanged tree is at fault.

A fault that cannot be imported counts as not found: any test would find it, whatever it tests. Hypothesis draws from
one seed here, so that a second run says the same.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import multiprocessing
import os
import py_compile
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("mutants.toml")
#: share of the faults that must be found
ENOUGH = 0.95
#: seconds for one fault's tests; who takes longer is stuck, which is also found
LONGEST = 900
#: not copied
LEFT = (".git", ".venv", "__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache", "cmray-data", "*.egg-info")
#: what tests import beside cmray: taken in once, before forking
LIBRARIES = (
    *("torch", "torchvision", "numpy", "scipy.linalg", "scipy.stats", "sklearn.datasets", "sklearn.model_selection"),
    *("hypothesis.strategies", "pydantic", "yaml", "safetensors.torch", "PIL.Image"),
)


@dataclass(frozen=True)
class Mutant:
    """One fault. `old` occurs once in `file`; of the files `tests` one must fail with `new` in its place."""

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]

    @property
    def room(self) -> str:
        """The folder in cmray/."""
        return self.file.split("/")[1]

    def applied(self, text: str) -> str:
        """The file's text with the fault in it. Raises ValueError where `old` does not occur exactly once."""
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: {self.file} holds the old text {count} times, not once")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """What a fault came to: killed, survived, broken (cannot be imported) or stuck; `by` is the first failing test."""

    status: str
    by: str
    seconds: float

    @property
    def found(self) -> bool:
        return self.status in ("killed", "stuck")


def read_mutants(path: Path = LIST) -> list[Mutant]:
    with path.open("rb") as file:
        entries = tomllib.load(file)["mutant"]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def copied(folder: Path) -> Path:
    """A copy of the tree, compiled so that a file counts by its content: two faults of a file may be of one second."""
    tree = folder / "tree"
    shutil.copytree(REPO, tree, ignore=shutil.ignore_patterns(*LEFT))
    compileall.compile_dir(tree / "cmray", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return tree


class _First:
    """A pytest plugin that keeps the first failure."""

    def __init__(self) -> None:
        self.status, self.by = "survived", ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.by:
            self.status, self.by = "killed", report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.by:
            self.status, self.by = "broken", report.nodeid


def _child(tree: Path, tests: Sequence[str], log: Path, answer: Connection) -> None:
    os.setsid()  # what the tests start ends with them
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree))
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    first = _First()
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests], plugins=[first])
    used = Path(str(sys.modules["cmray"].__file__)) if "cmray" in sys.modules else tree
    if not used.is_relative_to(tree):
        first.status, first.by = "broken", f"{used} was imported instead of the copy"
    elif code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and first.status == "survived":
        first.status, first.by = "broken", f"pytest ended with {code!r}"
    answer.send((first.status, first.by))


def outcome_of(tree: Path, tests: Sequence[str], log: Path, longest: float = LONGEST) -> Outcome:
    """Runs test files of a tree in a process of its own."""
    began = time.monotonic()
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(tree, tests, log, there))
    process.start()
    there.close()
    try:
        status, by = here.recv() if here.poll(longest) else ("stuck", f"no end after {longest:.0f} s")
    except EOFError:  # as some faults make it
        status, by = "stuck", "the process ended without an answer"
    if process.pid is not None and process.is_alive():
        process.join(timeout=5)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return Outcome(status, by, time.monotonic() - began)


def tried(mutant: Mutant, tree: Path, log: Path) -> Outcome:
    """The outcome of one fault in a copy, which is as before afterwards."""
    file = tree / mutant.file
    before = file.read_text()
    file.write_text(mutant.applied(before))
    try:
        return outcome_of(tree, mutant.tests, log)
    finally:
        file.write_text(before)


def summary(found: Sequence[tuple[Mutant, Outcome]]) -> str:
    """One line for each room and one for all."""
    rooms = list(dict.fromkeys(mutant.room for mutant, _ in found))
    lines = []
    for room in [*rooms, "all"]:
        some = [outcome.found for mutant, outcome in found if room in (mutant.room, "all")]
        lines.append(f"{room:12} {sum(some):3} of {len(some):3} killed")
    return "\n".join(lines)


def chosen(mutants: Sequence[Mutant], words: Sequence[str]) -> list[Mutant]:
    """Those whose name or file holds one of the words; all without words."""
    return [m for m in mutants if not words or any(word in m.name or word in m.file for word in words)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="faults whose name or file has it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the outcomes")
    options = parser.parse_args()
    mutants = chosen(read_mutants(), options.only)
    if not mutants:
        print(f"no fault has {' or '.join(options.only)} in its name or file", file=sys.stderr)
        return 2
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory(prefix="cmray-mutants-") as folder:
        tree, log = copied(Path(folder)), Path(folder) / "log.txt"
        found = []
        for mutant in mutants:
            try:
                found.append((mutant, tried(mutant, tree, log)))
            except ValueError as error:
                print(error, file=sys.stderr)
                return 2
            outcome = found[-1][1]
            shown = outcome.status.upper() if outcome.status == "survived" else outcome.status
            print(f"{shown:8} {mutant.name:48} {outcome.by} ({outcome.seconds:.0f} s)", flush=True)
        finders = sorted({outcome.by for _, outcome in found if outcome.status == "killed"})
        unchanged = outcome_of(tree, finders, log) if finders else Outcome("survived", "", 0.0)
        if unchanged.status != "survived":
            print(f"fails on the unchanged tree too: {unchanged.by}\n{log.read_text()[-4000:]}", file=sys.stderr)
            return 2
        print(f"all {len(finders)} tests that found something pass on the unchanged tree ({unchanged.seconds:.0f} s)")
    print(summary(found))
    if options.json is not None:
        rows = [{**asdict(mutant), "room": mutant.room, **asdict(outcome)} for mutant, outcome in found]
        options.json.write_text(json.dumps(rows, indent=1))
    return 0 if sum(outcome.found for _, outcome in found) >= ENOUGH * len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
