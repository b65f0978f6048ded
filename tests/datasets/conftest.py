"""Object stores of the tests' own: servers that speak the protocols of S3 and of Google Cloud Storage."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator

import pytest
from object_stores import in_gcs, in_s3, s3_serving


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    with s3_serving() as address:
        yield address


@pytest.fixture(scope="module")
def gcs_server() -> Iterator[str]:
    """In a process of its own: pyarrow waits for answers of Google's client with the interpreter's lock held."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from gcp_storage_emulator.server import create_server; create_server('127.0.0.1', {port}, True).run()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.kill()


def _wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise TimeoutError("the server of Google Cloud Storage's protocol did not start")


@pytest.fixture
def s3_bucket(s3_server, monkeypatch, request) -> str:
    """An empty bucket, reached by what a user would set."""
    return in_s3(s3_server, _name(request), monkeypatch)


@pytest.fixture(params=["s3", "gs"])
def bucket(request, monkeypatch) -> str:
    """An empty bucket in each kind of store, reached by what a user would set."""
    if request.param == "s3":
        return in_s3(request.getfixturevalue("s3_server"), _name(request), monkeypatch)
    return in_gcs(request.getfixturevalue("gcs_server"), _name(request), monkeypatch)


def _name(request: pytest.FixtureRequest) -> str:
    return f"b{zlib.crc32(request.node.name.encode())}-{os.getpid()}"
