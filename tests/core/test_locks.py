"""One writer per experiment folder, however the last one ended."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from cmray.core.errors import StorageError
from cmray.core.locks import check_writable, locked

HOLDER = """
import sys, time
from pathlib import Path
from cmray.core.locks import locked
with locked([Path(p) for p in sys.argv[1:]]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path/a and tmp_path/b."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "a"), str(tmp_path / "b")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_process_is_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(StorageError) as caught, locked([tmp_path / "b"]):
        pass
    for word in (str(tmp_path / "b"), f"process {holder.pid} on {socket.gethostname()}", "--storage"):
        assert word in str(caught.value)
    with locked([tmp_path / "c"]):
        pass


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_the_kernel_lets_go_when_the_holder_is_gone(tmp_path, holder, how):
    if how == "killed":
        os.kill(holder.pid, signal.SIGKILL)
    else:
        holder.stdin.write("\n")
        holder.stdin.flush()
    holder.wait(20)
    with locked([tmp_path / "a", tmp_path / "b"]):
        assert str(os.getpid()) in (tmp_path / "a" / ".lock").read_text()


def test_a_refusal_lets_go_of_what_it_had(tmp_path, holder):
    with pytest.raises(StorageError), locked([tmp_path / "0 first", tmp_path / "a"]):
        pass
    with locked([tmp_path / "0 first"]):
        pass


def test_the_same_folder_twice_is_one(tmp_path):
    with locked([tmp_path / "a", tmp_path / "a"]):
        pass
    with locked([tmp_path / "a"]):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"), locked([tmp_path / "file" / "below"]):
        pass


def test_a_writable_folder_is_left_as_it_was(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "a" / "b" / "x").write_text("x")
    check_writable(tmp_path / "a" / "b")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["x"]


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        check_writable(tmp_path / "file" / "below" / "more")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
