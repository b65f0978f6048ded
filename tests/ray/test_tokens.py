"""A token at hand, and a cluster that was started without."""

from __future__ import annotations

import pytest
from cli_run import CD, EDM, apart, good, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_token_of_another_cluster_keeps_nobody_out(tmp_path, cluster):
    for _ in range(2):
        cluster.do("add", cpus=2)
    write(tmp_path / "teacher.yaml", EDM, resources={"workers": 2})  # Ray Train is where it used to break
    panels = {"N": {"grid": {"objective.num_sigmas": [5]}}}
    file = write(tmp_path / "study.yaml", CD, teacher={"experiment": "teacher.yaml"}, panels=panels)
    words = ("sweep", file, "--storage", tmp_path / "storage", "--tracking-uri", "none", "--address", cluster.address)
    token = {"RAY_AUTH_TOKEN": "f" * 64}
    refused = apart(tmp_path / "refused", *words, **token, RAY_AUTH_MODE="token")
    assert refused.code == 2
    assert "started without tokens" in refused.err
    assert "RAY_AUTH_MODE=disabled" in refused.err
    assert not (tmp_path / "storage" / "study" / "report").exists()
    good(apart(tmp_path / "joined", *words, **token))
    assert (tmp_path / "storage" / "study" / "report" / "table.csv").is_file()
