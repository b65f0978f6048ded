"""The faults of analysis/mutants.toml still fit the code that they are to break; trying them all takes much longer."""

import ast
import runpy
from collections import Counter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(REPO / "analysis" / "mutants.py"))
MUTANTS = SCRIPT["read_mutants"]()
FORMULAS = ("core", "solvers", "samplers", "search", "metrics")


def test_each_fault_is_one_edit_of_one_place_that_leaves_python():
    for mutant in MUTANTS:
        text = (REPO / mutant.file).read_text()
        broken = mutant.applied(text)
        assert broken != text, mutant.name
        ast.parse(broken)
        assert mutant.breaks, mutant.name


def test_each_has_a_name_of_its_own_and_tests_that_exist():
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []
    for mutant in MUTANTS:
        assert mutant.tests, mutant.name
        assert [file for file in mutant.tests if not (REPO / file).is_file()] == [], mutant.name


def test_there_are_many_in_every_room_of_formulas_and_some_beyond():
    rooms = Counter(mutant.room for mutant in MUTANTS)
    assert min(rooms[room] for room in FORMULAS) >= 12
    assert sum(count for room, count in rooms.items() if room not in FORMULAS) >= 20


def test_a_fault_whose_place_is_gone_is_named():
    with pytest.raises(
        ValueError, match=rf"^{MUTANTS[0].name}: {MUTANTS[0].file} holds the old text 0 times, not once"
    ):
        MUTANTS[0].applied("something else")
