"""Commands whose storage is a URL: the same model, records and report as in a folder, from any machine."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

import pytest
from cli_run import CT, good, here, write
from object_stores import in_s3, s3_serving
from s3_gate import gated

import cmray
from cmray.engine.remote_store import Store
from cmray.tracking.events import read_events

pytestmark = [pytest.mark.slow]


@pytest.fixture
def gate(monkeypatch, tmp_path):
    with s3_serving() as server, gated(server) as one:
        one.bucket = in_s3(server, f"b{uuid.uuid4().hex[:12]}", monkeypatch)
        monkeypatch.setenv("AWS_ENDPOINT_URL", one.address)
        monkeypatch.setenv("CMRAY_CACHE", str(tmp_path / "first machine"))
        yield one


def test_train_on_one_machine_and_use_the_model_on_another(gate, tmp_path, monkeypatch):
    url, quiet = f"{gate.bucket}/storage", ("--tracking-uri", "none")
    file = write(tmp_path / "run.yaml", CT)
    trained = good(here("train", file, "--storage", url, *quiet))
    assert "40 steps" in trained.out
    assert f"--storage {url}" in " ".join(trained.out.split())
    name = re.search(r"run/ct-[0-9a-f]+", trained.out)
    assert name is not None
    monkeypatch.setenv("CMRAY_CACHE", str(tmp_path / "second machine"))
    monkeypatch.setenv("CMRAY_STORAGE", url)
    again = good(here("train", file, *quiet))
    assert "was trained already" in again.out
    folder = good(here("train", file, "--storage", tmp_path / "folder", *quiet))
    assert "40 steps" in folder.out
    for storage, out in ((url, "there.npz"), (tmp_path / "folder", "here.npz")):
        good(here("sample", name[0], "--storage", storage, "--num", 4, "--out", tmp_path / out, *quiet))
    assert (tmp_path / "there.npz").read_bytes() == (tmp_path / "here.npz").read_bytes()
    options = ("--num-samples", 256, "--nfe", 1, "--json", *quiet)
    values = [
        good(here("evaluate", name[0], "--storage", storage, *options)).json[0]["value"]
        for storage in (url, tmp_path / "folder")
    ]
    assert values[0] == values[1]
    monkeypatch.setenv("CMRAY_CACHE", str(tmp_path / "third machine"))
    good(here("report", "run"))
    store = Store(url, tmp_path / "eye")
    assert f"{values[0]:.2f}" in (store.read("run/report/table.md") or b"").decode()
    assert cmray.load_experiment("run", url).evaluations["value"].tolist() == [values[0]]
    anew = good(here("train", file, "--resume", "never", *quiet))
    assert "40 steps" in anew.out
    assert "was trained already" not in anew.out
    assert store.read(f"{name[0]}/attempt") == b"2"
    log = tmp_path / "events.jsonl"
    log.write_bytes(store.read(f"{name[0]}/events.jsonl") or b"")
    assert [e.step for e in read_events(log) if e.kind == "train"][-1] == 40
    assert json.loads(store.read(f"{name[0]}/result.json") or b"")["steps"] == 40


def test_what_is_wrong_with_a_url_is_one_line(gate, tmp_path):
    file = write(tmp_path / "run.yaml", CT)
    quiet = ("--tracking-uri", "none")
    missing = here("train", file, "--storage", f"s3://nobody-has-{uuid.uuid4().hex[:8]}/x", *quiet)
    assert missing.code == 2
    assert re.search(r"error: s3://nobody-has-\S+ cannot be reached", missing.err)
    unknown = here("sample", "run/ct", "--storage", f"{gate.bucket}/x", "--out", tmp_path / "x.npz", *quiet)
    assert unknown.code == 2
    assert f"no trial or checkpoint 'run/ct' in {gate.bucket}/x" in unknown.err
    gate.state = "read-only"
    refused = here("train", file, "--storage", f"{gate.bucket}/x", *quiet)
    assert refused.code == 2
    assert f"error: {gate.bucket}/x cannot be written: " in refused.err
    assert "ACCESS_DENIED" in refused.err
    for ran in (missing, unknown, refused):
        assert "Traceback" not in ran.err
    assert not Path(f"{tmp_path}/s3:").exists()
    assert not Path("s3:").exists()
