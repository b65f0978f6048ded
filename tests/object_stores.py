"""Buckets of servers that speak the protocols of object stores, reached by what a user would set."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyarrow import fs


def in_s3(server: str, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for key, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": server,
    }.items():
        monkeypatch.setenv(key, value)
    fs.S3FileSystem(endpoint_override=server, allow_bucket_creation=True).create_dir(name)
    return f"s3://{name}"


def in_gcs(server: str, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", server)
    fs.GcsFileSystem(anonymous=True, project_id="tests").create_dir(name)
    return f"gs://anonymous@{name}"


@contextmanager
def s3_serving() -> Iterator[str]:
    """The address of an S3 server, in a thread of this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()
