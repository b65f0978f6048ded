"""Storage in an object store: what is sent in which order, what is fetched, what is refused, who may write."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from object_stores import in_s3, s3_serving
from s3_gate import Gate, gated
from small_run import CPU, checkpoint, go, small

import cmray
from cmray.cluster.at_hand import Packed, pack
from cmray.core import lease as leases
from cmray.core.errors import CheckpointError, CmrayError, StorageError
from cmray.core.lease import Lease
from cmray.engine import remote
from cmray.engine.checkpoint import newest_checkpoint
from cmray.engine.model import load_model
from cmray.engine.remote import mount, store_of
from cmray.engine.remote_store import RefusedError, Store
from cmray.engine.remote_sync import Exchange, held, more_lines, refresh, share
from cmray.engine.remote_trial import RemoteTrial

RUN = {"train.steps": 6, "train.checkpoint_every": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_serving() as address:
        yield address


@pytest.fixture(scope="module")
def gate(server: str) -> Iterator[Gate]:
    with gated(server) as one:
        yield one


@pytest.fixture
def url(gate: Gate, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    gate.state = "open"
    bucket = in_s3(server, f"b{uuid.uuid4().hex[:12]}", monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", gate.address)
    monkeypatch.setenv("CMRAY_CACHE", str(tmp_path / "cache"))
    return f"{bucket}/folder"


def machine(url: str, folder: Path) -> Store:
    """The store as another machine sees it, with a working copy of its own."""
    return Store(url, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial with its last two checkpoints, at steps 4 and 6."""
    folder = tmp_path_factory.mktemp("trained")
    go(small({**RUN, "train.keep_checkpoints": 2}), folder / "trial")
    other = tmp_path_factory.mktemp("half")
    go(small({**RUN, "train.steps": 4}), other / "trial")
    shutil.copytree(checkpoint(other / "trial"), folder / "trial" / "checkpoints" / "step-00000004", dirs_exist_ok=True)
    (folder / "trial" / "result.json").unlink()
    return folder / "trial"


def steps(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").glob("step-*"))


def sent_by(store: Store, trained: Path, *names: str) -> RemoteTrial:
    """A trial that has sent these checkpoints, one after the other, from another machine."""
    folder = store.root / "exp" / "trial"
    folder.mkdir(parents=True, exist_ok=True)
    trial = RemoteTrial(store, folder, print)
    trial.begin()
    shutil.copy(trained / "events.jsonl", folder)
    for name in names:
        shutil.copytree(trained / "checkpoints" / name, folder / "checkpoints" / name)
        trial.end()
    return trial


def test_a_manifest_is_sent_after_its_parts_and_the_events_and_old_ones_are_removed(url, gate, trained, tmp_path):
    bucket = url.removeprefix("s3://")
    gate.seen.clear()
    store = machine(url, tmp_path / "a")
    trial = sent_by(store, trained, "step-00000004")
    shutil.rmtree(trial.folder / "checkpoints" / "step-00000004")
    shutil.copytree(trained / "checkpoints" / "step-00000006", trial.folder / "checkpoints" / "step-00000006")
    trial.end()
    paths = [p.removeprefix(f"/{bucket}/exp/trial/") for p in gate.written(f"/{bucket}/exp/trial/")]
    for step in ("step-00000004", "step-00000006"):
        own = [i for i, p in enumerate(paths) if p.startswith(f"checkpoints/{step}/") and not p.endswith("/")]
        assert paths[own[-1]] == f"checkpoints/{step}/meta.json"
        assert len(own) > 3
    assert paths.index("events.jsonl") < paths.index("checkpoints/step-00000004/meta.json")
    left = {n.split("/")[3] for n in store.listing("exp/trial/checkpoints")}
    assert left == {"step-00000006"}


def test_another_machine_goes_on_from_the_newest_and_has_its_events(url, trained, tmp_path):
    sent_by(machine(url, tmp_path / "a"), trained, "step-00000004", "step-00000006")
    folder = tmp_path / "b" / "exp" / "trial"
    assert RemoteTrial(machine(url, tmp_path / "b"), folder, print).begin() == "step-00000006"
    assert steps(folder) == ["step-00000006"]
    assert (folder / "events.jsonl").read_bytes() == (trained / "events.jsonl").read_bytes()
    found = newest_checkpoint(folder / "checkpoints", pytest.fail)
    assert found is not None
    for part in found[0].files:
        assert (found[1] / part).read_bytes() == (trained / "checkpoints" / "step-00000006" / part).read_bytes()


def test_a_checkpoint_without_its_manifest_is_none_and_is_removed(url, trained, tmp_path):
    store = machine(url, tmp_path / "a")
    sent_by(store, trained, "step-00000004", "step-00000006")
    store.delete("exp/trial/checkpoints/step-00000006/meta.json")
    folder = tmp_path / "b" / "exp" / "trial"
    assert RemoteTrial(machine(url, tmp_path / "b"), folder, pytest.fail).begin() == "step-00000004"
    assert not [n for n in store.listing() if "step-00000006" in n]
    with pytest.raises(CheckpointError, match=r"step-00000006 is not a whole checkpoint: it has no meta\.json"):
        machine(url, tmp_path / "c").get_checkpoint(tmp_path / "c" / "exp" / "trial" / "checkpoints" / "step-00000006")


def test_a_damaged_part_is_named_and_the_checkpoint_before_is_taken(url, trained, tmp_path):
    store = machine(url, tmp_path / "a")
    sent_by(store, trained, "step-00000004", "step-00000006")
    store.write("exp/trial/checkpoints/step-00000006/student.safetensors", b"something else")
    told: list[str] = []
    folder = tmp_path / "b" / "exp" / "trial"
    assert RemoteTrial(machine(url, tmp_path / "b"), folder, told.append).begin() == "step-00000004"
    assert len(told) == 1
    assert "step-00000006/student.safetensors" in told[0]
    assert steps(folder) == ["step-00000004"]


def test_what_this_machine_had_not_sent_yet_is_sent_first(url, trained, tmp_path):
    store = machine(url, tmp_path / "a")
    trial = sent_by(store, trained, "step-00000004")
    shutil.copytree(trained / "checkpoints" / "step-00000006", trial.folder / "checkpoints" / "step-00000006")
    assert RemoteTrial(store, trial.folder, pytest.fail).begin() == "step-00000006"
    assert "exp/trial/checkpoints/step-00000006/meta.json" in store.listing()


def test_what_is_left_of_another_attempt_is_forgotten(url, trained, tmp_path):
    store = machine(url, tmp_path / "a")
    trial = sent_by(store, trained, "step-00000004", "step-00000006")
    for name in store.listing("exp"):
        store.delete(name)
    store.write("exp/trial/attempt", b"2")  # begun anew somewhere else
    assert RemoteTrial(store, trial.folder, pytest.fail).begin() is None
    assert steps(trial.folder) == []
    assert not (trial.folder / "events.jsonl").exists()
    assert not [n for n in store.listing() if "checkpoints" in n]


def test_a_request_to_stop_reaches_the_trial_and_an_old_one_does_not(url, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("cmray.engine.remote_trial.ASK", 0.1)
    store, folder = machine(url, tmp_path / "a"), tmp_path / "a" / "exp" / "trial"
    folder.mkdir(parents=True)
    (folder / "stop").write_text("of a sweep before\n")
    trial = RemoteTrial(store, folder, pytest.fail)
    trial.begin()
    assert not (folder / "stop").exists()
    trial.start()
    store.write("exp/trial/stop", b"enough\n")
    end = time.monotonic() + 30
    while not (folder / "stop").is_file():
        assert time.monotonic() < end
        time.sleep(0.05)
    trial.end()
    assert (folder / "stop").read_text() == "enough\n"


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_loses_nothing(url, gate, trained, tmp_path):
    store = machine(url, tmp_path / "a")
    trial = sent_by(store, trained)
    told: list[str] = []
    trial._warn = told.append
    gate.state = "away"
    trial.start()
    shutil.copytree(trained / "checkpoints" / "step-00000006", trial.folder / "checkpoints" / "step-00000006")
    end = time.monotonic() + 60
    while not told:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert url in told[0]
    assert "tried again" in told[0]
    gate.state = "open"
    trial.end()
    assert "exp/trial/checkpoints/step-00000006/meta.json" in store.listing()


# drivers


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def small_files(root: Path) -> dict[str, str]:
    return {
        p.relative_to(root).as_posix(): p.read_text()
        for p in root.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(root).parts)
    }


def test_two_machines_see_each_others_changes_and_deletions(url, tmp_path):
    a, b = (machine(url, tmp_path / name) for name in "ab")
    one, two = Exchange(a, ["exp"]), Exchange(b, ["exp"])
    write(a.root / "exp" / "experiment.json", "{}")
    write(a.root / "exp" / "t" / "decisions.json", "first")
    write(a.root / "other" / "experiment.json", "not asked for")
    write(a.root / "exp" / "t" / ".half", "of a file")
    write(a.root / "exp" / "t" / "checkpoints" / "step-1" / "student.safetensors", "large")
    one.now()
    two.now()
    assert small_files(b.root) == {"exp/experiment.json": "{}", "exp/t/decisions.json": "first"}
    write(b.root / "exp" / "t" / "decisions.json", "second, longer")
    (b.root / "exp" / "experiment.json").unlink()
    write(b.root / "exp" / "t" / "new.json", "new")
    two.now()
    one.now()
    kept = {n: t for n, t in small_files(a.root).items() if n.startswith("exp/t/") and "checkpoints" not in n}
    assert kept == {"exp/t/decisions.json": "second, longer", "exp/t/new.json": "new"}
    assert not (a.root / "exp" / "experiment.json").exists()


def test_a_driver_that_was_killed_before_it_sent_something_sends_it_later(url, tmp_path):
    a = machine(url, tmp_path / "a")
    write(a.root / "exp" / "t" / "evaluations" / "1.json", "one")
    Exchange(a, ["exp"]).now()
    write(a.root / "exp" / "t" / "evaluations" / "2.json", "two")
    Exchange(a, ["exp"]).now(push=False)
    assert "exp/t/evaluations/2.json" not in a.listing()
    Exchange(machine(url, tmp_path / "a"), ["exp"]).now()
    assert "exp/t/evaluations/2.json" in a.listing()


def test_without_a_note_the_stores_files_are_taken(url, tmp_path):
    a = machine(url, tmp_path / "a")
    write(a.root / "exp" / "experiment.json", "the store's")
    Exchange(a, ["exp"]).now()
    shutil.rmtree(a.root / ".alike")
    write(a.root / "exp" / "experiment.json", "an old one of this machine")
    Exchange(a, ["exp"]).now()
    assert small_files(a.root)["exp/experiment.json"] == "the store's"


def test_of_a_trials_own_files_the_stores_are_newer(url, tmp_path):
    a = machine(url, tmp_path / "a")
    write(a.root / "exp" / "t" / "result.json", "{}")
    Exchange(a, ["exp"]).now()
    a.write("exp/t/result.json", b"of the trial")
    write(a.root / "exp" / "t" / "result.json", "of nobody")
    Exchange(a, ["exp"]).now()
    assert small_files(a.root)["exp/t/result.json"] == "of the trial"


def test_a_log_keeps_the_lines_of_both_sides(url, tmp_path):
    a = machine(url, tmp_path / "a")
    write(a.root / "exp" / "t" / "log.txt", "one\n")
    exchange = Exchange(a, ["exp"])
    exchange.now()
    a.write("exp/t/log.txt", b"one\nfrom the trial\n")
    write(a.root / "exp" / "t" / "log.txt", "one\nfrom the driver, which is longer\n")
    exchange.now()
    exchange.now()
    assert sorted((a.read("exp/t/log.txt") or b"").decode().splitlines()) == sorted(
        ["one", "from the trial", "from the driver, which is longer"]
    )
    assert small_files(a.root)["exp/t/log.txt"].startswith("one\nfrom the driver")
    assert more_lines(b"a\nb\n", b"b\nc\n") == b"a\nb\nc\n"


# who may write

HOLDER = """
import sys
from pathlib import Path
from cmray.core.lease import Lease
from cmray.engine.remote_store import Store
with Lease(Store(sys.argv[1], Path(sys.argv[2])), "exp").held():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_one_holder_at_a_time_and_a_killed_one_lets_go(url, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.2)
    code = f"import cmray.core.lease as r; r.BEAT = 0.2\n{HOLDER}"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, url, str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        store = machine(url, tmp_path / "b")
        with (
            pytest.raises(StorageError, match=f"exp is in use by process {holder.pid} on .*--storage"),
            Lease(store, "exp").held(),
        ):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(20)
        with Lease(store, "exp").held(pytest.fail):  # nothing is waited for
            (own,) = store.names("exp/.lease")
            assert f"process {os.getpid()} on" in json.loads(store.read(own) or b"")["holder"]
        assert store.names("exp/.lease") == []
    finally:
        holder.kill()
        holder.communicate()


def test_a_holder_elsewhere_that_gives_no_sign_is_waited_for_and_finds_out(url, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "LEASE", 2.0)
    monkeypatch.setattr(leases, "BEAT", 0.2)
    store = machine(url, tmp_path / "a")
    store.write("exp/.lease/t", b'{"beat": 4, "holder": "process 1 on far", "place": ["elsewhere", 1, 1, 1]}')
    told: list[str] = []
    with Lease(store, "exp").held(told.append) as lease:
        assert "was held by process 1 on far" in told[0]
        lease.check()
        (own,) = store.names("exp/.lease")  # of one that was frozen, as others see it
        store.write("exp/.lease/u", b'{"beat": 2, "holder": "process 2 on far", "place": ["elsewhere", 1, 2, 1]}')
        store.delete(own)
        end = time.monotonic() + 30
        while lease._lost is None and time.monotonic() < end:
            time.sleep(0.05)
        with pytest.raises(StorageError, match="taken over by process 2 on far"):
            lease.check()
    assert store.names("exp/.lease") == ["exp/.lease/u"]


def test_of_four_that_begin_together_never_two_hold(url, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.2)
    won, lost, go_on = [], [], threading.Barrier(4)

    def attempt(i: int) -> None:
        lease = Lease(machine(url, tmp_path / str(i)), "exp")
        go_on.wait()
        try:
            with lease.held():
                won.append(i)
                time.sleep(5)
                lease.check()
        except StorageError:
            lost.append(i)

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) <= 1, "two held the folder"
    assert len(lost) == 4 - len(won)


# what a user meets


def test_a_path_is_itself_and_a_url_has_a_working_copy(url, tmp_path):
    assert mount(str(tmp_path / "x")) == tmp_path / "x"
    assert mount(f"file://{tmp_path}/x") == tmp_path / "x"
    assert store_of(tmp_path / "x") is None
    root = mount(url)
    assert root.is_relative_to(tmp_path / "cache")
    assert root == mount(f"{url}/")
    found = store_of(root / "exp" / "trial")
    assert found is not None
    assert found.url == url
    assert mount(url, "bench") != root


def test_held_is_the_lock_alone_where_the_storage_is_a_folder(tmp_path):
    with held(tmp_path, [tmp_path / "exp"]) as now:
        now()
        assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".lock"]
    refresh(tmp_path, ["exp"])


def test_a_bucket_that_is_not_there_is_said_in_one_line(url):
    missing = f"s3://no-such-{uuid.uuid4().hex[:8]}/folder"
    with pytest.raises(StorageError, match=f"^{missing} cannot be reached: ") as caught:
        mount(missing)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_said_in_one_line(url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match="cannot be reached: ") as caught:
        mount(f"s3://some-{uuid.uuid4().hex[:8]}/folder")
    assert "\n" not in str(caught.value)


def test_a_scheme_that_nobody_knows(tmp_path):
    with pytest.raises(StorageError, match="storage ftp://x/y cannot be opened"):
        mount("ftp://x/y")


def test_a_bucket_that_may_only_be_read_is_refused_before_anything_starts(url, gate, tmp_path):
    root = mount(url)
    gate.state = "read-only"
    with pytest.raises(StorageError, match=f"^{url} cannot be written: .*ACCESS_DENIED") as caught:  # noqa: SIM117
        with held(root, [root / "exp"]):
            pass
    assert "\n" not in str(caught.value)
    write(root / "exp" / "report" / "table.md", "a report")
    began = time.monotonic()
    with pytest.raises(RefusedError):
        share([root / "exp"])
    assert time.monotonic() - began < 60  # asking again would be of no use
    gate.state = "open"
    store = store_of(root)
    assert store is not None
    assert store.listing() == {}


def test_the_mounts_of_this_process_are_by_folder(url):
    assert remote.shown(mount(url)) == url
    assert remote.shown(Path("/somewhere")) == "/somewhere"


# ---------------------------------------------------------------- from Python


def test_a_model_is_loaded_from_a_url_that_is_given_or_set(url, trained, tmp_path, monkeypatch):
    store = machine(url, tmp_path / "a")
    sent_by(store, trained, "step-00000004", "step-00000006")
    store.put(trained / "config.yaml", "exp/trial/config.yaml")
    expected = cmray.load(trained / "checkpoints" / "step-00000006", tmp_path, "cpu").sample(2, seed=3)
    given = cmray.load("exp/trial", url, "cpu")
    assert torch.equal(given.sample(2, seed=3), expected)
    assert given.name == "exp/trial"
    monkeypatch.setenv("CMRAY_STORAGE", url)
    monkeypatch.setenv("CMRAY_CACHE", str(tmp_path / "another machine"))
    assert torch.equal(cmray.load("trial", device="cpu").sample(2, seed=3), expected)
    with pytest.raises(CmrayError, match=f"no trial or checkpoint 'exp/tiral' in {url}; did you mean 'exp/trial'"):
        cmray.load("exp/tiral")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="cannot be reached"):
        cmray.load("exp/trial", "s3://nobody-has-this-bucket/x")
    assert not (tmp_path / "s3:").exists()


# ---------------------------------------------------------------- calls with a driver's files


class Reader:
    """Reads the kept file, makes another, and ends when it is told to."""

    def __init__(self):
        self.began, self.go_on = threading.Event(), threading.Event()

    def work(self, kept: str, made: str, more: list[str]) -> tuple[bytes, bytes, str]:
        first = Path(kept).read_bytes()
        self.began.set()
        assert self.go_on.wait(60)
        second = Path(kept).read_bytes()
        Path(made).parent.mkdir(parents=True, exist_ok=True)
        Path(made).write_bytes(second + b" and more")
        return first, second, kept


def packed_call(driver: Path, kept: str, made: str) -> Packed:
    packed = pack("work", (str(driver / kept), str(driver / made), ["a word"]), lambda path: path.read_bytes())
    assert packed is not None
    assert list(packed.files) == [kept]
    return packed


def test_calls_at_once_on_one_kept_file_do_not_disturb_each_other(url, tmp_path):
    """One that ends first takes nothing away from the other; what each makes travels back; nothing stays."""
    driver = mount(url)
    kept = driver / "e" / "t" / "parts" / "kept.npz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kept")
    calls = [packed_call(driver, "e/t/parts/kept.npz", f"e/t/parts/{name}.npz") for name in ("a", "b")]
    readers = [Reader(), Reader()]
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(call.run, reader, bytes) for call, reader in zip(calls, readers, strict=True)]
        try:
            assert all(reader.began.wait(60) for reader in readers)
            readers[0].go_on.set()
            (first, second, place), found = running[0].result(60)
            assert (first, second) == (b"kept", b"kept")
            assert found == {"e/t/parts/a.npz": b"kept and more"}
            assert not Path(place).exists(), "its own copy is gone"
        finally:
            for reader in readers:
                reader.go_on.set()
        (first, second, _), found = running[1].result(60)
    assert (first, second) == (b"kept", b"kept")
    assert found == {"e/t/parts/b.npz": b"kept and more"}
    bench = mount(url, "bench")
    assert [p for p in bench.rglob("*") if p.is_file() and "parts" in p.parts] == []
    assert list((bench / ".calls").iterdir()) == []
    assert kept.read_bytes() == b"kept"
    calls[1].keep(found)
    assert (driver / "e" / "t" / "parts" / "b.npz").read_bytes() == b"kept and more"


def test_a_call_that_fails_leaves_nothing_either(url, tmp_path):
    driver = mount(url)
    (driver / "e").mkdir(parents=True)
    (driver / "e" / "kept.npz").write_bytes(b"kept")

    class Fails:
        def work(self, kept: str, made: str, more: list[str]) -> None:
            Path(made).write_bytes(b"half")
            raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        packed_call(driver, "e/kept.npz", "e/made.npz").run(Fails(), bytes)
    assert list((mount(url, "bench") / ".calls").iterdir()) == []


def test_a_checkpoint_is_fetched_to_the_machine_and_stays_there(url, trained, tmp_path):
    store = machine(url, tmp_path / "a")
    sent_by(store, trained, "step-00000006")
    driver, name = mount(url), "exp/trial/checkpoints/step-00000006"

    class Loads:
        def work(self, checkpoint: str) -> str:
            assert len(load_model(Path(checkpoint), CPU).weights_sha256) == 64
            return checkpoint

    (driver / "exp").mkdir(parents=True)
    (driver / "exp" / "kept").write_bytes(b"kept")
    packed = pack("work", (str(driver / name),), lambda path: path.read_bytes())
    assert packed is not None
    place, found = packed.run(Loads(), bytes)
    assert place == str(mount(url, "bench") / name)
    assert (Path(place) / "meta.json").is_file()
    assert found == {}
