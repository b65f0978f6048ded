"""Files and folders appear whole or not at all, and a place that cannot take one is told before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cmray.core.errors import ConfigError
from cmray.core.files import beside, check_place


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---------------------------------------------------------------- beside


def test_nothing_is_there_before_the_block_ends_and_all_of_it_after(tmp_path):
    with beside(tmp_path / "file") as tmp:
        tmp.write_text("half")
        assert not (tmp_path / "file").exists()
        tmp.write_text("whole")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "whole"
    with beside(tmp_path / "file") as tmp:
        assert (tmp_path / "file").read_text() == "whole"
        tmp.write_text("new")
        assert (tmp_path / "file").read_text() == "whole"
    assert (tmp_path / "file").read_text() == "new"


def test_a_folder_comes_whole_over_an_empty_one_and_over_no_full_one(tmp_path):
    (tmp_path / "folder").mkdir()
    with beside(tmp_path / "folder") as tmp:
        tmp.mkdir()
        (tmp / "a").write_text("a")
        assert names(tmp_path / "folder") == []
    assert names(tmp_path / "folder") == ["a"]
    with pytest.raises(OSError, match="folder"), beside(tmp_path / "folder") as tmp:
        tmp.mkdir()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path, error, kind):
    (tmp_path / "x").write_text("old")

    def broken() -> None:
        with beside(tmp_path / "x") as tmp:
            if kind == "file":
                tmp.write_text("new")
            elif kind == "folder":
                (tmp / "below").mkdir(parents=True)
                (tmp / "below" / "file").write_text("new")
            raise error

    with pytest.raises(error):
        broken()
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_folders_above_are_made_and_two_at_once_do_not_meet(tmp_path):
    place = tmp_path / "a" / "b" / "file"
    with beside(place) as one, beside(place) as two:
        assert one != two
        assert one.parent == two.parent == place.parent  # one file system, so that it is one rename
        one.write_text("one")
        two.write_text("two")
    assert names(place.parent) == ["file"]
    assert place.read_text() == "one", "the last to end"


# ---------------------------------------------------------------- check_place


@pytest.mark.parametrize("folder", [False, True])
def test_a_free_place_is_taken_and_left_as_it_is(tmp_path, folder):
    check_place(tmp_path / "new", "--out", folder=folder)
    assert names(tmp_path) == []


def test_a_file_may_replace_a_file_and_a_folder_an_empty_one(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    check_place(tmp_path / "file", "--out")
    check_place(tmp_path / "link", "--out")
    check_place(tmp_path / "empty", "--out", folder=True)


@pytest.mark.parametrize(
    ("name", "folder", "words"),
    [
        ("empty", False, "is a folder; write a file's name"),
        ("to-empty", False, "is a folder; write a file's name"),
        ("file", True, "exists and is not an empty folder"),
        ("full", True, "exists and is not an empty folder"),
        ("to-empty", True, "is a link; name a folder"),
        ("to-nothing", True, "is a link; name a folder"),
        ("pipe", True, "exists and is not an empty folder"),
        ("no/such/x", False, "does not exist"),
        ("no/such/x", True, "does not exist"),
        ("file/x", False, "does not exist"),
        ("file/x", True, "does not exist"),
    ],
)
def test_a_place_that_cannot_be_is_told_with_the_option_s_name(tmp_path, name, folder, words):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "to-empty").symlink_to(tmp_path / "empty")
    (tmp_path / "to-nothing").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError) as error:
        check_place(tmp_path / name, "--there", folder=folder)
    assert str(error.value).startswith(f"--there {tmp_path / name}")
    assert words in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        check_place(tmp_path / "locked" / "x", "--out")


def test_a_file_system_that_takes_no_files_is_told():
    """Also to root, whom the bits of a folder's mode do not bind."""
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc on this machine")
    with pytest.raises(ConfigError, match=r"folder /proc/self cannot be written: "):
        check_place(Path("/proc/self/x"), "--out")
