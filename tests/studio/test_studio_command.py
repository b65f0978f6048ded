"""`cmray studio`: bad input is one line with exit code 2; a good one serves this machine alone and ends quietly."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import urllib.error
import urllib.request

import pytest
from cli_run import Ran, Running, closed_port, here

from cmray.cli.studio import _meant
from cmray.studio.shelf import open_shelf


def refused(ran: Ran) -> str:
    lines = ran.err.strip().splitlines()
    assert (ran.code, ran.out, len(lines)) == (2, "", 1), ran.err
    assert lines[0].startswith("error: ")
    return lines[0]


def studio(models, *arguments: object) -> Ran:
    return here("studio", *arguments, "--no-open", "--storage", models.storage)


def test_no_such_run(models):
    line = refused(studio(models, models.student, "nothing"))
    assert "no trial or checkpoint 'nothing'" in line


def test_a_run_without_a_checkpoint(models, tmp_path):
    (tmp_path / "one" / "cd-123").mkdir(parents=True)
    (tmp_path / "one" / "cd-123" / "config.yaml").write_text("")
    line = refused(here("studio", "one/cd-123", "--no-open", "--storage", tmp_path))
    assert "one/cd-123 has no whole checkpoint yet" in line
    trial = {"name": "cd-123", "label": "cd", "role": "trial", "panels": [], "objective": "cd", "experiment": "one"}
    (tmp_path / "one" / "experiment.json").write_text(json.dumps({"name": "one", "metric": "fd", "trials": [trial]}))
    line = refused(here("studio", "one", "--no-open", "--storage", tmp_path))
    assert "none of the 1 trials of one has a whole checkpoint yet" in line


def test_weights_that_are_not_there(models):
    assert "ema 0.5" in refused(studio(models, models.student, "--weights", "ema 0.5"))


def test_a_port_in_use(models):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(studio(models, models.student, "--port", port))
    assert f"port {port} on 127.0.0.1 is in use" in line
    assert "--port" in line


def test_without_gradio(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'cmray[studio]'" in refused(studio(models, models.student))


def test_an_experiment_stands_for_its_trials_with_their_labels(models):
    places = _meant("all", models.storage, None)
    shelf = open_shelf(places, models.storage, None, lambda words: "")
    assert shelf.names == [models.student, models.direct, models.teacher], "teachers come last"
    assert [title for title, _ in shelf.choices] == ["cd · N=9", "ct · N=9", "edm"]


def test_no_port_takes_another_where_the_usual_one_is_in_use():
    from cmray.studio.serve import PORT, free_port

    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", PORT))
            taken.listen()
        except OSError:  # somebody else has it, which serves as well
            pass
        assert free_port(None) not in (0, PORT)


def status(url: str, host: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_this_machine_alone_and_leaves_nothing(models, tmp_path, stop):
    port = closed_port()
    arguments = ("studio", "all", "--port", port, "--no-open", "--storage", models.storage)
    places = tmp_path / "places"
    places.mkdir()
    with Running(tmp_path / "desk", *arguments, TMPDIR=str(places), GRADIO_SERVER_NAME="0.0.0.0") as running:
        running.until(lambda: "Ctrl-C ends it" in running.text(), "its address", 120)
        address = f"http://127.0.0.1:{port}"
        assert status(address) == 200
        listening = {c.laddr.ip for p in running.left() for c in p.net_connections("inet") if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        (own,) = places.iterdir()
        secret = models.storage / "all" / "experiment.json"
        for path in (secret, "/etc/passwd", own.parent / "other.png", tmp_path / "desk" / "stdout.txt"):
            assert status(f"{address}/gradio_api/file={path}") in (403, 404), path
        assert status(address, host="studio.example") == 400, "another name may be a page of another site"
        with urllib.request.urlopen(address, timeout=20) as page:
            assert "default-src 'self'" in page.headers["content-security-policy"]
        running.ctrl_c() if stop == signal.SIGINT else running.process.send_signal(stop)
        ran = running.ended(30)
        running.gone(5)
    assert ran.code == 0
    assert re.fullmatch(rf"studio at {address}, with 3 models \(Ctrl-C ends it\)\n", ran.out)
    assert ran.err.strip() == "starting"
    assert list(places.iterdir()) == []
