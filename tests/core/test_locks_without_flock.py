"""Folders on file systems that have no locks: a lease takes their place."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
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


class Memory:
    """Leases in a dict, for a look at them between two beats."""

    def __init__(self):
        self.files: dict[str, bytes] = {}

    def url_of(self, name: str) -> str:
        return f"memory:{name}"

    def names(self, folder: str) -> list[str]:
        return [name for name in sorted(self.files) if name.startswith(f"{folder}/")]

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def write(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def delete(self, name: str) -> None:
        self.files.pop(name, None)


def test_a_holder_gives_way_to_who_holds_and_not_to_who_only_tries(monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    store, stranger = Memory(), {"holder": "process 1 on far", "place": ["elsewhere", 1, 1, 1]}
    end = time.monotonic() + 20
    with lease.Lease(store, "exp").held() as held:
        (own,) = store.names("exp/.lease")
        store.write("exp/.lease/other", json.dumps({**stranger, "beat": 1}).encode())
        first = json.loads(store.files[own])["beat"]
        while (now := json.loads(store.files[own])["beat"]) < first + 4 and time.monotonic() < end:
            time.sleep(0.01)
        assert now >= first + 4, "it goes on with its signs"
        held.check()
        store.write("exp/.lease/other", json.dumps({**stranger, "beat": 2}).encode())
        while held._lost is None and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(StorageError, match="exp was taken over by process 1 on far"):
            held.check()
    assert store.names("exp/.lease") == ["exp/.lease/other"]


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
