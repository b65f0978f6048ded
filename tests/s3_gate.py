"""A gate in front of an S3 server: it writes down every request, and can be closed for writers or altogether."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

_DENIED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
_AWAY = b'<?xml version="1.0"?><Error><Code>ServiceUnavailable</Code><Message>Away</Message></Error>'


class Gate(ThreadingHTTPServer):
    """Forwards to `server` what its state lets through."""

    daemon_threads = True

    def __init__(self, server: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlsplit(server)
        self.state: Literal["open", "read-only", "away"] = "open"
        self.seen: list[tuple[str, str]] = []  # method and path of those that succeeded, in their order
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def note(self, method: str, path: str) -> None:
        with self._lock:
            self.seen.append((method, unquote(path)))

    def written(self, under: str = "") -> list[str]:
        """Paths of objects below a folder, in the order in which they were written."""
        return [p for m, p in self.seen if m == "PUT" and p.startswith(under)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gate  # pyright: ignore[reportIncompatibleVariableOverride]

    def _forward(self) -> None:
        body = self._body()
        writes = self.command not in ("GET", "HEAD")
        if self.server.state == "away" or (writes and self.server.state == "read-only"):
            away = self.server.state == "away"
            self._answer(503 if away else 403, [("Content-Type", "application/xml")], _AWAY if away else _DENIED)
            return
        behind = http.client.HTTPConnection(self.server.behind.netloc, timeout=60)
        try:
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "expect", "connection"):
                    behind.putheader(name, value)
            behind.putheader("Content-Length", str(len(body)))
            behind.endheaders(body)
            answer = behind.getresponse()
            data = answer.read()
            if answer.status < 300:
                self.server.note(self.command, self.path.partition("?")[0])
            keep = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")]
            self._answer(answer.status, keep, data)
        finally:
            behind.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            out = b""
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return out
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def gated(server: str) -> Iterator[Gate]:
    gate = Gate(server)
    thread = threading.Thread(target=gate.serve_forever, daemon=True)
    thread.start()
    try:
        yield gate
    finally:
        gate.shutdown()
        gate.server_close()
