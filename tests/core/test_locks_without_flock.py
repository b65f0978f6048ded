"""Folders on file systems that have no locks: a lease takes their place."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cmray.core import lease
from cmray.core.errors import StorageError
from cmray.core.files import UNSEEN, unseen_for
from cmray.core.locks import locked, waited_for

#: a file system without locks cannot be made here, so the system call answers as one would
WITHOUT = """
import errno, fcntl
def refused(file, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = refused
import cmray.core.lease as lease
lease.BEAT = 0.2
"""
HOLDER = f"""{WITHOUT}
import sys
from pathlib import Path
from cmray.core.locks import locked
with locked([Path(sys.argv[1])]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(lease, "BEAT", 0.2)


def test_a_folder_without_locks_is_held_by_a_lease(tmp_path, without_locks):
    with locked([tmp_path / "a", tmp_path / "b"]):
        assert len(list((tmp_path / "a" / ".lease").iterdir())) == 1
        with pytest.raises(StorageError, match=f"{tmp_path / 'a'} is in use by process"), locked([tmp_path / "a"]):
            pass
    assert not list((tmp_path / "a" / ".lease").iterdir())
    with locked([tmp_path / "a"]):
        pass


def test_a_second_process_is_refused_and_a_killed_one_is_not_waited_for(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        def refused(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refused)
        with pytest.raises(StorageError, match=f"is in use by process {holder.pid} on .*--storage"), locked([folder]):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(20)
        with locked([folder]):
            (own,) = (folder / ".lease").iterdir()
            assert f"process {os.getpid()} on" in own.read_text()
    finally:
        holder.kill()
        holder.communicate()


def test_an_error_that_is_not_about_locks_is_one(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(StorageError, match="cannot be locked: Input/output error"), locked([tmp_path]):
        pass
    with pytest.raises(OSError, match="Input/output"), waited_for(tmp_path / "lock"):
        pass


def test_nobody_waits_where_there_are_no_locks(tmp_path, without_locks):
    with waited_for(tmp_path / "lock") as alone:
        assert not alone


def test_which_file_systems_show_files_late():
    mounts = "/dev/sda1 / ext4 rw 0 0\nserver:/x /mnt/shared\\040folder nfs4 rw 0 0\ntmpfs /mnt/fast tmpfs rw 0 0\n"
    assert unseen_for(Path("/mnt/shared folder/storage/exp"), mounts) == UNSEEN
    assert unseen_for(Path("/mnt/fast/storage"), mounts) == 0
    assert unseen_for(Path("/home/x"), mounts) == 0
