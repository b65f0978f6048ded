"""A checkpoint that does not fit on the disk: one line, nothing half-written, and the one before is still good."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess

import pytest
from small_run import CPU, digits, go, small

from cmray.cluster.spec import TrialSpec
from cmray.cluster.work import run_trial
from cmray.core.errors import StorageError
from cmray.core.files import disk_full, write_atomic
from cmray.engine.checkpoint import newest_checkpoint
from cmray.engine.session import PlainSession


class Fills(PlainSession):
    """Takes all room of the disk at the n-th step."""

    def __init__(self, balloon, steps):
        super().__init__(CPU)
        self._balloon, self._left = balloon, steps

    def should_stop(self) -> bool:
        self._left -= 1
        if self._left == 0:
            with contextlib.suppress(OSError), self._balloon.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        return False


@pytest.fixture
def disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system can be mounted by root only, and not in every container")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("log_every", [100, 1], ids=["a checkpoint", "a line of the log"])
def test_a_run_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(disk, tmp_path, log_every):
    run = small({"train.steps": 30, "train.checkpoint_every": 10, "train.log_every": log_every, "net.width": 64})
    folder, balloon = disk / "trial", disk / "balloon"
    folder.mkdir()
    spec = TrialSpec("ct-1", run.model_dump(mode="json"), str(folder), None)
    with pytest.raises(StorageError) as full:
        run_trial(spec, digits(), Fills(balloon, 15))
    assert str(folder) in str(full.value)
    assert "No space left on device" in str(full.value)
    found = newest_checkpoint(folder / "checkpoints", pytest.fail)
    assert found is not None
    assert found[0].step == 10
    assert not list(folder.rglob(".step-*"))
    balloon.unlink()
    assert run_trial(spec, digits(), PlainSession(CPU)).status == "finished"
    whole = go(run, tmp_path / "whole").result
    again = newest_checkpoint(folder / "checkpoints", pytest.fail)
    assert again is not None
    assert again[0].weights_sha256 == whole.weights_sha256


def test_other_errors_of_a_disk_are_not_called_full(tmp_path):
    assert disk_full(tmp_path, OSError(errno.EIO, "bad")) is None
    assert "make room" in str(disk_full(tmp_path / "gone", OSError(errno.ENOSPC, "No space left on device")))


def test_a_small_file_that_does_not_fit_is_named(disk):
    (disk / "balloon").write_bytes(bytes(1 << 20))
    with pytest.raises(OSError, match="No space") as full:
        write_atomic(disk / "big.txt", "x" * (2 << 20))
    assert full.value.filename == str(disk / "big.txt")
    assert [p.name for p in disk.iterdir()] == ["balloon"]
