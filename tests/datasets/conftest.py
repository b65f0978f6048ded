"""An object store of the tests' own: a server that speaks S3's protocol."""

import logging
from collections.abc import Iterator

import pytest
from pyarrow import fs


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server, monkeypatch, request) -> str:
    """An empty bucket, reached by what a user would set."""
    for key, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": server,
    }.items():
        monkeypatch.setenv(key, value)
    name = f"b{abs(hash(request.node.name))}"
    fs.S3FileSystem(endpoint_override=server, allow_bucket_creation=True).create_dir(name)
    return f"s3://{name}"
