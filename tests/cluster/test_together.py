"""The first process of a run to fail says why, once and whole; the others repeat it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cmray.cluster.together import part, say_why, why
from cmray.core.errors import CmrayError


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_nothing_was_said(tmp_path):
    assert why(tmp_path / "none") is None
    (tmp_path / "half").write_text('{"reason": "the lo')
    assert why(tmp_path / "half") is None
    (tmp_path / "other").write_text("{}")
    assert why(tmp_path / "other") is None


def test_the_first_reason_stands(tmp_path):
    said = tmp_path / "said"
    say_why(said, raised(CmrayError("the loss is nan\nand more")))
    say_why(said, raised(RuntimeError("Connection closed by peer")))
    found = why(said)
    assert str(found) == "the loss is nan"
    assert "CmrayError: the loss is nan\nand more" in found.trace
    assert found.trace.startswith("Traceback")


def test_an_error_that_is_no_message_to_people_is_named(tmp_path):
    say_why(tmp_path / "a", raised(ValueError("bad")))
    say_why(tmp_path / "b", raised(KeyError()))
    assert str(why(tmp_path / "a")) == "ValueError: bad"
    assert str(why(tmp_path / "b")) == "KeyError: KeyError"


def test_of_many_at_once_one_is_kept_whole(tmp_path):
    said = tmp_path / "said"

    def said_and_read(i: int) -> str:
        say_why(said, CmrayError(f"reason {i} " + "x" * 10_000))
        return str(why(said))  # not None for a moment: the others would take their error for one of their own

    with ThreadPoolExecutor(8) as pool:
        read = set(pool.map(said_and_read, range(8)))
    assert read == {str(why(said))}
    assert [file.name for file in tmp_path.iterdir()] == ["said"]
    assert len(str(why(said))) == len("reason 0 ") + 10_000


def test_a_place_that_cannot_be_written_is_no_second_error(tmp_path):
    say_why(tmp_path / "no" / "such" / "folder", CmrayError("a"))
    assert why(tmp_path / "no" / "such" / "folder") is None
    part()  # in no process group
