"""Sweeps as jobs of a real cluster of one node, with a token: submitted, listed, followed, left alone, stopped."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from cli_run import CT, write
from plugin_example import EXAMPLE
from ray_heads import Head, started

from cmray.engine.versions import git_revision

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

QUICK: dict[str, Any] = {
    "panels": {"N": {"grid": {"objective.num_sigmas": [5, 9]}}},
    "evaluate": {"num_samples": 128, "nfe": [1]},
}
ENDLESS: dict[str, Any] = {**QUICK, "train": {"steps": 1_000_000, "checkpoint_every": 1000, "log_every": 100}}


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    with started(tmp_path_factory.mktemp("jobs"), cpus=3) as made:
        yield made


def test_a_sweep_runs_as_a_job_with_the_code_that_was_submitted(head):
    """That of a plug-in's file included, which the submitting machine alone has."""
    plugin = shutil.copyfile(EXAMPLE / "cmray_plugin_example" / "charbonnier.py", head.folder / "charbonnier.py")
    plugins = {"CMRAY_PLUGINS": str(plugin)}
    file = write(head.folder / "quick.yaml", CT, QUICK, {"objective": {"distance": "charbonnier"}})
    place = head.folder / "storage"
    words = ("jobs", "submit", file, "--storage", place, "--tracking-uri", "none", "--set", "seed=3", "--follow")
    first = head.cmray(*words, **plugins)
    assert first.code == 0, first.err + first.out
    assert "Training trials" in first.out
    assert "table:" in first.out
    assert "has finished after" in first.err
    (job,) = head.listed()
    assert (job["status"], job["exit_code"], job["experiment"]) == ("SUCCEEDED", 0, "quick")
    assert job["id"] == f"quick-{job['hash'][:10]}"
    assert job["storage"] == str(place)
    assert "--address auto" in job["entrypoint"]
    results = [json.loads(f.read_text()) for f in place.glob("quick/*/result.json")]
    assert len(results) == 2
    for result in results:
        assert result["git"] == job["revision"] == git_revision(), "other code than was submitted"
        assert result["versions"]["charbonnier.py"].startswith("sha256:")
    before = {f: f.stat().st_mtime_ns for f in place.rglob("*.json")}
    again = head.cmray("sweep", *words[2:-1], "--address", head.url, **plugins)
    assert again.code == 0, again.err
    assert "Everything was done already" in again.out
    assert {f: f.stat().st_mtime_ns for f in before if f.parent.parent.name == "quick"} == {
        f: t for f, t in before.items() if f.parent.parent.name == "quick"
    }
    assert [j["id"] for j in head.listed()] == [f"{job['id']}-2", job["id"]]
    shown = head.cmray("jobs", "list")
    assert job["id"] in shown.out
    assert "succeeded" in shown.out


def test_a_job_outlives_its_follower_is_not_started_twice_and_can_be_stopped(head):
    file = write(head.folder / "endless.yaml", CT, ENDLESS)
    place = head.folder / "endless"
    words = (file, "--storage", place, "--tracking-uri", "none")
    with head.running("sweep", *words, "--address", head.url) as following:
        following.until(lambda: list(place.glob("endless/*/checkpoints/step-*")), "a checkpoint")
        following.ctrl_c()
        left = following.ended(60)
    assert left.code == 0, left.err
    assert "goes on without this terminal" in left.err
    assert "Traceback" not in left.err
    attached = head.cmray("jobs", "submit", *words, "--json")
    assert attached.code == 0, attached.err
    job = attached.json
    assert (job["new"], job["status"]) == (False, "RUNNING")
    assert job["id"] in left.err
    assert "is not submitted again" in attached.err
    shown = head.cmray("jobs", "logs", "endless", "--json").json
    assert (shown["id"], shown["status"]) == (job["id"], "RUNNING")
    assert "Training trials" in shown["logs"]
    stopped = head.cmray("jobs", "stop", job["id"][:12], "--json")
    assert stopped.code == 0, stopped.err
    assert stopped.json["status"] == "STOPPED"
    drivers = [p for p in psutil.process_iter() if str(place) in " ".join(_command(p))]
    assert not drivers, "the driver still runs"
    assert "stopped; the same command goes on" in head.cmray("jobs", "logs", job["id"]).out
    assert head.cmray("jobs", "stop", job["id"]).code == 0, "a job that has ended is no error"


def test_without_the_token_nothing_is_told(head):
    for token, mode in (("", "disabled"), ("another-token-that-is-as-long-as-the-right-one-456", "token")):
        ran = head.cmray("jobs", "list", token=token, mode=mode)
        assert ran.code == 2
        assert "wants the token of its cluster" in ran.err
        assert len(ran.err.strip().splitlines()) == 1, ran.err
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{head.url}/api/jobs/", timeout=10)
    missing = head.cmray("jobs", "logs", "quik")
    assert missing.code == 2
    assert "no job 'quik'" in missing.err


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
