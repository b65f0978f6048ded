"""Where files of weights are looked for, and what names their content."""

import hashlib
import json
import multiprocessing
import os
import time

import pytest
import torch
from torch import nn

from cmray.core.errors import DataError
from cmray.metrics import weights_files
from cmray.metrics.weights_files import WeightsFile, cache_folder, content_of, fill, once_per_machine


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cmray" / "weights"


@pytest.fixture
def file(tmp_path):
    places = lambda: (tmp_path / "first", tmp_path / "second")
    return WeightsFile("extractor 'x'", "w.pt", 7, "https://example.org/w.pt", "weights", places)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_the_first_copy_is_taken(tmp_path, file, cache):
    assert cache_folder() == cache
    assert file.path() == tmp_path / "second" / "w.pt"
    for folder in ("second", "first"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.pt").write_bytes(b"1")
        assert file.path() == tmp_path / folder / "w.pt"
    assert file.path("/else/where") == type(tmp_path)("/else/where")


def test_what_is_missing_or_cannot_be_read(tmp_path, file):
    with pytest.raises(DataError) as error:
        file.check_readable(file.path())
    first, second = tmp_path / "first", tmp_path / "second"
    assert str(error.value) == (
        f"extractor 'x' needs the file w.pt, which is not here (looked in {first}, {second}); get "
        f"https://example.org/w.pt (7 MB) and copy it to {second}, or name a copy with weights: PATH"
    )
    with pytest.raises(DataError, match=r"looked for .*/first\); "):
        file.check_readable(first)
    with pytest.raises(DataError, match="Is a directory"):
        file.check_content(tmp_path, None)


def test_a_change_of_a_file_is_noticed_even_within_a_tick_of_its_time(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"one")
    assert content_of(path) == sha256(b"one")
    state = path.stat()
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as if it had not been touched
    assert content_of(path) == sha256(b"two")
    path.unlink()
    assert content_of(path) is None


def _hash(path, out):
    weights_files.NOTED_FROM = 1
    out.put(content_of(path))


@pytest.mark.slow
def test_large_files_are_hashed_once_for_all_processes(tmp_path, cache, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2**20))
    right = sha256(path.read_bytes())
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=_hash, args=(path, out)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [out.get(timeout=60) for _ in workers] == [right, right]
    for worker in workers:
        worker.join(60)
    (note,) = (cache / "seen").glob("*.json")
    assert json.loads(note.read_text())["sha256"] == right
    # who comes later believes the note, and does not read the file
    monkeypatch.setattr(weights_files, "NOTED_FROM", 1)
    note.write_text(json.dumps({**json.loads(note.read_text()), "sha256": "a" * 64}))
    assert content_of(path) == "a" * 64
    note.write_text("no JSON")
    state = path.stat()
    assert once_per_machine(path, (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)) == right


def test_a_note_of_another_state_of_a_file_is_not_believed(tmp_path, cache):
    path, state = tmp_path / "w", (3, 0, 0, 0)
    path.write_bytes(b"one")
    assert once_per_machine(path, state) == sha256(b"one")
    (note,) = (cache / "seen").glob("*.json")
    right = note.read_text()
    note.write_text(json.dumps({"file": [str(path), 4, 0, 0, 0], "sha256": "a" * 64}))
    assert once_per_machine(path, state) == sha256(b"one")
    assert note.read_text() == right


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setattr(weights_files, "NOTED_FROM", 1)
    (tmp_path / "w").write_bytes(b"one")
    assert content_of(tmp_path / "w") == sha256(b"one")


def test_a_network_is_filled_whole_or_not_at_all():
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    full = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = {k: v for k, v in full.state_dict().items() if not k.endswith("num_batches_tracked")}
    network = empty.to_empty(device="cpu")
    fill(network, {**state, "more": 1}, "")
    x = torch.randn(4, 3)
    assert torch.equal(network.eval()(x), full.eval()(x))
    with pytest.raises(DataError, match=r"^F: 0\.bias of shape \[2\] is needed, it has one of \[5\]$"):
        fill(network, {**state, "0.bias": torch.zeros(5)}, "F: ")
    state.pop("1.running_var")
    with pytest.raises(DataError, match=r"^F: 1\.running_var of shape \[2\] is needed, it has none$"):
        fill(network, state, "F: ")
