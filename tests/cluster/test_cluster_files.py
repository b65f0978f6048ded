"""The cluster files that come with cmray: Ray's own validator takes them, and what they call exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_run import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config
from shell_words import calls, check

from cmray import __version__
from cmray.cluster.autoscale import grown, growth_of
from cmray.cluster.resources import Capacity, check_fits
from cmray.config.load import load_raw
from cmray.config.run import ResourcesConfig

CLOUDS = ["cluster.yaml", "cluster/gcp.yaml"]
SSH = [*CLOUDS, "cluster/local.yaml"]
ALL = [*SSH, "cluster/kuberay.yaml", "cluster/Dockerfile"]
START = ("head_start_ray_commands", "worker_start_ray_commands")


def raw(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def shell(name: str) -> list[str]:
    """Every command that Ray runs on a node."""
    return [c for key, value in raw(name).items() if key.endswith("_commands") for c in value]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if "==" in line)


@pytest.mark.parametrize("name", SSH)
def test_ray_takes_the_file(name):
    validate_config(prepare_config(raw(name)))


@pytest.mark.parametrize("name", SSH)
def test_ray_would_refuse_a_file_with_a_slip(name):
    """The validator does look: a test of the test above."""
    config = prepare_config(raw(name))
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config({**config, "idle_timeout_minute": 5})


@pytest.mark.parametrize("name", CLOUDS)
def test_nothing_trains_on_the_head_and_workers_come_when_asked_for(name):
    config = raw(name)
    kinds = dict(config["available_node_types"])
    head = kinds.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["labels"]["market"] == "on-demand"
    assert "spot" not in json.dumps(head).lower()
    assert {kind["min_workers"] for kind in kinds.values()} == {0}
    assert 0 < config["idle_timeout_minutes"] <= 30
    gpus = {kind["labels"]["market"] for kind in kinds.values() if kind["resources"].get("GPU")}
    assert gpus == {"on-demand", "spot"}
    for kind in kinds.values():
        machine = json.dumps(kind["node_config"]).lower()
        is_spot = '"spot"' in machine or '"preemptible": true' in machine
        assert is_spot == (kind["labels"]["market"] == "spot")


@pytest.mark.parametrize("name", CLOUDS)
def test_the_paper_s_trials_have_room_once_the_cluster_has_grown(name):
    may = growth_of(raw(name))
    assert may is not None
    largest = grown(Capacity(0, 0, name, ((0.0, 0.0),)), may)
    preset = load_raw(ROOT / "experiments" / "presets" / "cifar10-cd.yaml").values["resources"]
    check_fits(ResourcesConfig(**preset), largest, "fig3")


@pytest.mark.parametrize("name", SSH)
def test_every_start_command_asks_for_the_token_and_every_node_gets_it(name):
    config = raw(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    started = 0
    for command in (c for key in START for c in config[key]):
        before, _, after = command.partition("ray sta" if "ray start" in command else "ray stop")
        if after:
            assert "export RAY_AUTH_MODE=token" in before, command
            started += "ray start" in command
    assert started == 2
    assert "RAY_AUTH_MODE=token" in " ".join(config["setup_commands"])  # the shells of people, and of `ray exec`
    assert not re.search(r"RAY_AUTH_MODE=(?!token)", (ROOT / name).read_text())


@pytest.mark.parametrize("name", SSH)
def test_servers_listen_where_they_should(name):
    words = [w for command in shell(name) for w in calls(command)]
    (head,) = [w for w in words if w[:2] == ["ray", "start"] and "--head" in w]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head
    (server,) = [w for w in words if w[:2] == ["mlflow", "server"]]
    assert server[server.index("--host") + 1] == "$address"  # the private one, not 0.0.0.0
    assert "sqlite:///" in server[server.index("--backend-store-uri") + 1]
    assert "0.0.0.0" not in " ".join(shell(name))


@pytest.mark.parametrize("name", SSH)
def test_commands_and_options_exist(name):
    found = [words for command in shell(name) for words in calls(command)]
    assert {tuple(words[:2]) for words in found} >= {("ray", "start"), ("ray", "stop"), ("mlflow", "server")}
    for words in found:
        check(words)


@pytest.mark.parametrize("text", ["ray start --heads", "mlflow serve", "cmray sweep F --adress x", "cmray swep F"])
def test_a_slip_in_a_command_would_be_found(text):
    with pytest.raises(Exception, match=r"No such option|there is no|no such option"):
        check(next(calls(text)))


@pytest.mark.parametrize("name", SSH)
def test_the_bucket_or_folder_stands_in_one_form_and_storage_and_tracking_are_told_to_jobs(name):
    head = " ".join(raw(name)["head_start_ray_commands"])
    stores = set(re.findall(r"CMRAY_STORAGE=(\S+?)['\s;]", (ROOT / name).read_text()))
    assert len(stores) == 1
    assert f"CMRAY_STORAGE={stores.pop()}" in head.partition("ray start")[0]
    assert "MLFLOW_TRACKING_URI=http://" in head.partition("ray start")[0]


@pytest.mark.parametrize("name", ALL)
def test_versions_are_those_of_the_constraints(name):
    text = (ROOT / name).read_text()
    known = pins()
    for package, version in re.findall(r"([A-Za-z0-9_.-]+)==([0-9][\w.]*)", text):
        assert known[package.lower()] == version
    for version in re.findall(r"rayVersion: \"?([\d.]+)", text):
        assert version == known["ray"]
    for tag in re.findall(r"/cmray:([\w.]+)", text):
        assert tag == __version__
    installs = [line for line in text.splitlines() if "pip install" in line and not line.lstrip().startswith("#")]
    assert all(re.search(r"-c \S*constraints\.txt", line) for line in installs)
    assert installs or name.endswith("kuberay.yaml")


@pytest.mark.parametrize("name", ALL)
def test_no_secret_and_no_machine_of_ours_stands_in_it(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|/home/(?!ubuntu)", text)
    usual = {Path("/"), *map(Path, ("/tmp", "/opt", "/srv", "/mnt", "/var", "/usr", "/home"))}
    for ours in {ROOT, ROOT.parent, Path.home()} - usual:  # wherever this is tested, and so where it was written
        assert f"{ours}/" not in text
    assert Path(ROOT / name).stat().st_size < 12_000
