"""docs/cluster.md: its commands exist, and its tables are what analysis/cluster_cost.py prints."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_run import ROOT
from hypothesis import given
from hypothesis import strategies as st
from shell_words import calls, check

SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "analysis" / "cluster_cost.py"))
TEXT = (ROOT / "docs" / "cluster.md").read_text()


def table(name: str) -> str:
    found = re.search(rf"<!-- table: {name} -->\n(.*?)\n<!-- end -->", TEXT, re.DOTALL)
    assert found, name
    return found[1].strip()


def counted() -> float:
    found = re.search(r"([\d,]+) GPU-hours of an A100", TEXT)
    assert found
    return float(found[1].replace(",", ""))


def test_every_command_exists():
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    found = [words for block in blocks for line in block.splitlines() for words in calls(line)]
    assert len(found) > 13
    assert {words[0] for words in found} == {"cmray", "ray"}
    for words in found:
        check(words)


def test_the_files_it_names_exist():
    linked = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", TEXT)
    named = re.findall(r"(?:~/cmray/)?((?:experiments|cluster|analysis)/[\w./-]+\.\w+)", TEXT)
    assert linked
    assert named
    for name in linked:
        if name != "jobs.md":  # a page of its own
            assert (ROOT / "docs" / name).resolve().exists(), name
    for name in named:
        assert (ROOT / name).is_file(), name


def test_the_tables_are_what_the_script_prints():
    prices = {name: price.dollars for name, price in SCRIPT["PRICES"].items()}
    demand, spot = (SCRIPT["steps_of"](counted(), SCRIPT["Assumed"](), prices, on_spot) for on_spot in (False, True))
    assert table("steps") == SCRIPT["cost_table"](demand, spot)
    assert table("prices") == SCRIPT["price_table"](prices)


def test_it_assumes_what_the_cluster_file_says():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assumed = SCRIPT["Assumed"]()
    assert assumed.idle == pytest.approx(config["idle_timeout_minutes"] / 60)
    for name in ("head", "cpu", "gpu", "gpu-spot"):
        kind = config["available_node_types"][name]
        assert SCRIPT["PRICES"][name].what.startswith(kind["node_config"]["InstanceType"])
        assert kind["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == SCRIPT["DISK"]
        assert kind["resources"]["GPU"] == (assumed.gpus if name.startswith("gpu") else 0)


def test_the_bill_is_hours_times_prices():
    """Worked by hand: 800 GPU-hours at 100% on eight GPUs are 100 hours of the head and the machine, disks included."""
    prices = {"head": 1.0, "cpu": 2.0, "gpu": 20.0, "gpu-spot": 10.0, "disk": 0.0, "s3": 0.0}
    free = dict.fromkeys(("head_up", "node_up", "look", "smoke", "prepare", "idle", "end", "repeated"), 0.0)
    assumed = SCRIPT["Assumed"](**free, efficiency=1.0)
    assert sum(step.dollars for step in SCRIPT["steps_of"](800, assumed, prices, False)) == pytest.approx(2100)
    assert sum(step.dollars for step in SCRIPT["steps_of"](800, assumed, prices, True)) == pytest.approx(1100)
    disks = {**prices, "disk": 7.3}  # 200 GB of two machines, at a cent per GB and hour
    assert sum(s.dollars for s in SCRIPT["steps_of"](800, assumed, disks, False)) == pytest.approx(2100 + 400)


@given(st.floats(1, 1e6), st.floats(1.0, 3.0))
def test_more_work_and_higher_prices_cost_more(hours, factor):
    prices = {name: price.dollars for name, price in SCRIPT["PRICES"].items()}
    bill = lambda h, p: sum(step.dollars for step in SCRIPT["steps_of"](h, SCRIPT["Assumed"](), p, True))
    assert bill(hours * factor, prices) >= bill(hours, prices)
    assert bill(hours, {k: v * factor for k, v in prices.items()}) == pytest.approx(factor * bill(hours, prices))


@pytest.mark.slow
def test_the_hours_are_counted_on_the_networks_of_fig3(tmp_path):
    """Some seconds: every network of the file is built without memory and its operations are counted."""
    assert SCRIPT["counted_gpu_hours"](ROOT / "experiments" / "fig3.yaml", Path(tmp_path)) == counted()
