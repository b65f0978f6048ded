"""The picture and the table of one model's searches."""

from __future__ import annotations

import os

import pytest
from report_factory import search

from cmray.core.errors import StorageError
from cmray.report.searches import search_picture, search_points

POINTS = [(5, 10.0, 3.0), (3, 0.66, 2.0), (1, 0.1, 4.0)]


def test_every_point_has_a_row():
    two = search(*POINTS, (2, 0.4, 1.5), (1, 0.1, 1.7), rounds=[3, 2], times=(80.0, 0.66, 0.4))
    table = search_points([search(*POINTS), two])
    assert list(table["sigma"]) == [10.0, 0.66, 0.1, 10.0, 0.66, 0.1, 0.4, 0.1]
    assert list(table["time"]) == [2, 2, 2, 2, 2, 2, 3, 3]
    assert list(table["nfe"]) == [2, 2, 2, 3, 3, 3, 3, 3]
    assert list(table["sigma"][table["chosen"]]) == [0.66, 0.66, 0.4]


def test_the_picture_is_drawn_again_when_there_is_something_new(tmp_path):
    folder = tmp_path / "trial" / "searches"
    folder.mkdir(parents=True)
    assert search_picture(folder.parent, "cd") is None
    (folder / "a.json").write_text(search(*POINTS).model_dump_json())
    picture = search_picture(folder.parent, "cd")
    assert picture is not None
    first = picture.read_bytes()
    picture.write_bytes(b"kept")
    assert search_picture(folder.parent, "cd") == picture
    assert picture.read_bytes() == b"kept"
    (folder / "b.json").write_text(search(*POINTS, times=(80.0, 0.1)).model_dump_json())
    later = picture.stat().st_mtime_ns + 10**9
    os.utime(folder / "b.json", ns=(later, later))
    search_picture(folder.parent, "cd")
    assert picture.read_bytes() not in (b"kept", first)


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "searches").mkdir()
    (tmp_path / "searches" / "a.json").write_text("{")
    with pytest.raises(StorageError, match=r"a\.json is no Search"):
        search_picture(tmp_path, "cd")
