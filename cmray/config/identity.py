"""The content hash that names a trial."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def identity(config: BaseModel) -> dict[str, Any]:
    """The fields that decide what is computed: all but those marked as not part of the identity."""
    return {key: _plain(getattr(config, key)) for key, info in type(config).model_fields.items() if _counts(info)}


def content_hash(value: Any) -> str:
    """SHA-256 in hex of a config's identity or of any JSON value, independent of key order."""
    plain = _plain(value)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _counts(info: FieldInfo) -> bool:
    extra = info.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("identity") is False)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
