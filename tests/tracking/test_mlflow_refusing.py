"""Servers that answer, but not as one hopes: one line, and the records wait in the storage folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cmray.tracking.make import make_tracker
from cmray.tracking.records import Event

EVENT = Event(kind="train", step=1, nimg=8, time=1.0, metrics={"loss": 1.0})


@contextmanager
def answering(status: int, body: str, content_type: str, reads: bool = False) -> Iterator[str]:
    """A server that gives one answer to everything; with `reads` it answers questions, and refuses changes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asks = reads and ("/search" in self.path or "get-by-name" in self.path)
            self._answer(*((200, "{}", "application/json") if asks else (status, body, content_type)))

        def do_GET(self) -> None:
            known = json.dumps({"experiment": {"experiment_id": "1", "name": "x", "lifecycle_stage": "active"}})
            self._answer(*((200, known, "application/json") if reads else (status, body, content_type)))

        def _answer(self, status: int, body: str, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://ann:secret@127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sweep_a_little(uri: str, storage) -> list[str]:
    lines: list[str] = []
    tracker = make_tracker(uri, storage, lines.append)
    tracker.start_experiment("x", "about it")
    assert tracker.open_run("t", "t", params={"a": 1}, tags={}) is None
    tracker.sync_events("t", [EVENT])
    tracker.log_text("t", "words", "notes.txt")
    tracker.close_run("t", "finished")
    tracker.close()
    return lines


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (401, "You are not authenticated", "text/plain"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "not for you"}', "application/json"),
        (404, "<html><body>another service</body></html>", "text/html"),
        (500, '{"error_code": "INTERNAL_ERROR", "message": "no database"}', "application/json"),
        (200, "<html><body>a login page</body></html>", "text/html"),
    ],
)
def test_a_server_that_refuses_everything_is_named_and_stops_nothing(tmp_path, status, body, content_type):
    with answering(status, body, content_type) as uri:
        first, last = sweep_a_little(uri, tmp_path)
    assert "the sweep goes on and its records are sent later" in first
    assert "were not sent; the same `cmray sweep` sends them" in last
    assert not any("secret" in line or "\n" in line or "Traceback" in line for line in (first, last))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_can_only_be_read_is_one_line(tmp_path):
    denied = '{"error_code": "PERMISSION_DENIED", "message": "read only"}'
    with answering(403, denied, "application/json", reads=True) as uri:
        (line,) = sweep_a_little(uri, tmp_path)
    assert "did not take" in line
    assert "read only" in line
    assert "stays in the storage folder" in line
