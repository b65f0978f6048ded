"""Commands that start something: the doctor's Ray, the page of MLflow."""

import urllib.request

import pytest
from cli_run import CT, Running, apart, closed_port, good, here, write

pytestmark = pytest.mark.slow


def test_the_doctor_finds_all_that_is_here_and_leaves_nothing(tmp_path):
    with Running(tmp_path / "desk", "doctor", "--json", "--storage", tmp_path / "storage") as running:
        ran = running.ended(120)
        running.gone(20)
    checks = {c["name"]: c for c in ran.json}
    for name in ("ray", "torch", "mlflow", "Ray", "MLflow", "storage", "extractor digits"):
        assert checks[name]["ok"], checks[name]
    assert ran.code == int(not all(c["ok"] for c in checks.values()))
    assert not (tmp_path / "storage").exists()


def test_the_doctor_says_what_is_missing_and_how_to_get_it(tmp_path):
    (tmp_path / "file").write_text("")
    server, cluster = f"http://127.0.0.1:{closed_port()}", f"127.0.0.1:{closed_port()}"
    more = ("--tracking-uri", server, "--address", cluster)
    ran = apart(tmp_path / "desk", "doctor", "--json", "--storage", tmp_path / "file" / "below", *more, timeout=120)
    assert ran.code == 1
    bad = {c["name"]: c for c in ran.json if not c["ok"]}
    assert {"storage", "MLflow", "Ray"} <= bad.keys()
    assert server in bad["MLflow"]["found"]
    assert cluster in bad["Ray"]["found"]
    assert all(bad[name]["mend"] for name in ("storage", "MLflow", "Ray"))


def test_the_page_of_mlflow_answers_on_this_machine_only_and_ends_with_ctrl_c(tmp_path):
    file = write(tmp_path / "run.yaml", CT)
    good(here("train", file, "--storage", tmp_path / "storage"))
    port = closed_port()
    with Running(tmp_path / "desk", "ui", "--port", port, "--storage", tmp_path / "storage") as running:

        def answers() -> bool:
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
            except OSError:
                return False

        running.until(answers, "an answer", 90)
        listening = {c.laddr.ip for p in running.left() for c in p.net_connections("inet") if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        running.ctrl_c()
        running.ended(20)
        running.gone(20)
