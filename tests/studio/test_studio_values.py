"""What people type into fields."""

import pytest

from cmray.core.errors import CmrayError
from cmray.studio import values


def test_numbers_as_people_write_them():
    assert values.levels("80, 0.8") == [80.0, 0.8]
    assert values.levels(" 80;0.8 ") == [80.0, 0.8]
    assert values.labels("3") == [3]
    assert values.labels("0,1, 2") == [0, 1, 2]
    assert values.labels("  ") is None
    assert values.labels(None) is None


@pytest.mark.parametrize(
    ("text", "words"), [("", "missing"), (",", "missing"), ("80, x", "'80, x'"), ("80,,1", "80,,1")]
)
def test_levels_that_are_none(text, words):
    with pytest.raises(CmrayError, match=words):
        values.levels(text)


def test_labels_are_whole():
    with pytest.raises(CmrayError, match=r"labels are '1\.5'"):
        values.labels("1.5")


@pytest.mark.parametrize("value", [None, 1.5, -1])
def test_a_number_that_is_not_whole(value):
    with pytest.raises(CmrayError, match="whole number"):
        values.whole(value, "the seed")


def test_a_whole_number():
    assert values.whole(3.0, "the seed") == 3


def test_levels_are_shown_short():
    assert values.shown_levels([80, 0.8123]) == "80, 0.812"
    assert values.shown_levels([float(t) for t in range(40, 0, -1)]) == "40, 39, …, 1"


def test_seconds():
    assert [values.seconds(s) for s in (0.0134, 0.9994, 0.9996, 2.44)] == ["13 ms", "999 ms", "1.0 s", "2.4 s"]
