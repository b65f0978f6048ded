"""Tokens and other secrets: whom they keep out, and where they are never found."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_run import CD, EDM, apart, good, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: what a shell may hold, each with a value that can be found
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-4242",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-4242",
    "MLFLOW_TRACKING_TOKEN": "planted-tracking-4242",
    "HF_TOKEN": "planted-hub-4242",
    "RAY_AUTH_TOKEN": "planted-ray-4242" + "f" * 48,
}


def study_in(folder: Path) -> Path:
    write(folder / "teacher.yaml", EDM, resources={"workers": 2})  # under Ray Train, the second half under Tune
    panels = {"N": {"grid": {"objective.num_sigmas": [5]}}}
    return write(folder / "study.yaml", CD, teacher={"experiment": "teacher.yaml"}, panels=panels)


def test_a_token_of_another_cluster_keeps_nobody_out_and_no_secret_is_kept(tmp_path, cluster):
    for _ in range(2):
        cluster.do("add", cpus=2)
    words = ("sweep", study_in(tmp_path), "--storage", tmp_path / "storage", "--address", cluster.address)
    refused = apart(tmp_path / "refused", *words, **PLANTED, RAY_AUTH_MODE="token")
    assert refused.code == 2
    assert "started without tokens" in refused.err
    assert "RAY_AUTH_MODE=disabled" in refused.err
    assert not (tmp_path / "storage" / "study" / "report").exists()
    joined = good(apart(tmp_path / "joined", *words, **PLANTED))
    report = tmp_path / "storage" / "study" / "report"
    assert (report / "table.csv").is_file()
    assert (tmp_path / "storage" / "mlflow.db").is_file()
    searched = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert report / "report.html" in searched
    for secret in PLANTED.values():
        assert secret not in refused.out + refused.err + joined.out + joined.err
        assert [file for file in searched if secret.encode() in file.read_bytes()] == []
