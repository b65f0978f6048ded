"""Buckets of servers that speak the protocols of object stores, reached by what a user would set."""

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
