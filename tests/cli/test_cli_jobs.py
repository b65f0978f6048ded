"""What cannot become a job is refused in one line, before anything is sent or written."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from cli_run import CT, Ran, closed_port, here, snapshot, write

PANELS: dict[str, Any] = {"panels": {"one": {"grid": {"objective.num_sigmas": [5, 9]}}}}


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refused(ran: Ran, *words: str) -> None:
    assert ran.code == 2, f"exit code {ran.code}\n{ran.out}\n{ran.err}"
    assert ran.out == ""
    lines = [line for line in ran.err.splitlines() if not line.startswith("cmray sweep ")]
    assert len(lines) == 1, ran.err
    for word in words:
        assert word in lines[0], f"'{word}' is not in: {lines[0]}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--storage is missing", "s3://BUCKET/FOLDER"]),
        (["--storage", "cmray-data"], ["--storage is 'cmray-data'", "absolute path"]),
        (["--storage", "/x", "--max-hours", "0"], ["--max-hours", "0 is no time"]),
        (["--storage", "/x", "--tracking-uri", "http://me:secret@host:5000"], ["--tracking-uri holds a password"]),
        (["--storage", "/x", "--tracking-uri", "hpp://host"], ["hpp"]),
        (["--storage", "/x", "--set", "train.stepz=3"], ["train.stepz", "did you mean 'steps'"]),
        (["--storage", "/x", "--only", "ones"], ["--only ones", "did you mean 'one'"]),
        (["--storage", "/x", "--address", "head:8265"], ["head:8265", "write http://HOST:8265"]),
        (["--storage", "/x", "--address", "ray://head:10001"], ["write http://HOST:8265"]),
    ],
)
def test_a_sweep_that_cannot_be_submitted(desk, options, words):
    file = write(desk / "study.yaml", CT, PANELS)
    before = snapshot(desk)
    ran = here("jobs", "submit", file, *options)
    refused(ran, *words)
    assert "secret" not in ran.err
    assert snapshot(desk) == before


@pytest.mark.parametrize("command", ["list", "logs", "stop"])
def test_no_job_server(desk, command):
    name = [] if command == "list" else ["fig3"]
    refused(here("jobs", command, *name, "--address", f"http://127.0.0.1:{closed_port()}"), "no job server answers")


def test_a_server_that_is_no_job_server(desk):
    """Something listens there, and says nothing that Ray would."""
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                with line:
                    line.settimeout(1)
                    try:
                        if line.recv(4096):
                            line.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    except OSError:
                        pass

        threading.Thread(target=answer, daemon=True).start()
        refused(here("jobs", "list", "--address", f"http://127.0.0.1:{server.getsockname()[1]}"), "refuses")


def test_a_sweep_goes_to_a_job_server_by_its_address(desk):
    file = write(desk / "study.yaml", CT, PANELS)
    url = f"http://127.0.0.1:{closed_port()}"
    refused(here("sweep", file, "--address", url), "--storage is missing")
    refused(here("sweep", file, "--address", url, "--storage", "/x"), "no job server answers", url)
    assert here("sweep", file, "--address", url, "--storage", desk / "s", "--dry-run").code == 0


@pytest.mark.parametrize("address", ["ray://127.0.0.1:{}", "http://127.0.0.1:{}"])
def test_commands_that_need_their_driver_on_a_node_say_so(desk, address):
    file = write(desk / "run.yaml", CT)
    before = snapshot(desk)
    ran = here("train", file, "--storage", desk / "s", "--address", address.format(closed_port()))
    assert ran.code == 2
    assert ("Ray Client" if address.startswith("ray") else "cmray jobs submit") in ran.err
    assert snapshot(desk) == before
