"""What comes from Python is what it means, or one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmray.core.arguments import real, reals, whole, wholes
from cmray.core.errors import CmrayError


@pytest.mark.parametrize("four", [4, np.int64(4), np.uint8(4), np.array(4), torch.tensor(4)], ids=repr)
def test_whole_numbers_of_every_library_are_python_s(four):
    assert whole("n", four) == 4
    assert type(whole("n", four)) is int
    assert wholes("seed", four) == [4]
    assert real("sigma", four) == 4.0


def test_lists_of_every_library_are_python_s():
    for many in ([1, 2], (1, 2), range(1, 3), np.array([1, 2]), torch.tensor([1, 2]), {1, 2}, iter([1, 2])):
        found = wholes("labels", many)
        assert found == [1, 2]
        assert [type(one) for one in found] == [int, int]
    for many in ([80, 0.5], (80.0, 0.5), np.array([80, 0.5]), torch.tensor([80, 0.5]), [np.float32(80), "0.5"][:1]):
        found = reals("times", many)
        assert found == [80.0, 0.5][: len(found)]
        assert {type(one) for one in found} == {float}
    assert (wholes("labels", []), reals("times", np.zeros(0))) == ([], [])


@pytest.mark.parametrize("bad", [2.5, 2.0, "2", None, True, [2], {}, np.float64(2), torch.tensor(2.0), 1j], ids=repr)
def test_what_is_no_whole_number_is_told(bad):
    with pytest.raises(CmrayError, match=r"^n is .*; give a whole number$"):
        whole("n", bad)


@pytest.mark.parametrize(
    "bad", [2.5, "12", b"12", None, {1: 2}, [1, 2.5], ["1"], [[1], [2]], np.ones((2, 2))], ids=repr
)
def test_what_holds_no_whole_numbers_is_told(bad):
    with pytest.raises(CmrayError, match=r"(?s)^seed is .*; give a whole number$"):
        wholes("seed", bad)


@pytest.mark.parametrize("bad", ["2", None, True, [2.0], 1j, torch.zeros(2), 10**400], ids=lambda v: str(v)[:12])
def test_what_is_no_number_is_told(bad):
    with pytest.raises(CmrayError, match=r"^sigma is .*; give a number$"):
        real("sigma", bad)


@pytest.mark.parametrize("bad", [80, "80,1", b"80", None, {80: 1}, np.array(80.0), torch.tensor(80.0)], ids=repr)
def test_what_is_no_list_of_numbers_is_told_with_an_example(bad):
    with pytest.raises(CmrayError, match=r"^times is .*; give a list of numbers, such as \[80, 0\.8\]$"):
        reals("times", bad)


def test_a_list_with_something_else_in_it_is_told_by_what_it_is():
    with pytest.raises(CmrayError, match=r"^times is 'x'; give a number$"):
        reals("times", [80, "x"])


@pytest.mark.parametrize("call", [whole, wholes, real, reals])
def test_what_is_told_of_much_is_one_line(call):
    for value in (np.full((40, 40), 0.5), torch.full((40, 40), 0.5), "a\nb", "x" * 10_000):
        with pytest.raises(CmrayError) as error:
            call("seed", value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300
