"""How our names, values and URIs look in MLflow; needs no mlflow."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cmray.core.errors import CmrayError, nearest

_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
_KEY_LENGTH, _VALUE_LENGTH = 250, 6000  # MLflow's limits, in characters
TAG_LENGTH = 5000  # its limit for a tag's value before 2.15; 8000 since


def metric_name(name: str) -> str:
    """A metric's name in MLflow: "fd/digits@2" becomes "fd/digits/nfe_2", as MLflow allows no "@".

    Other characters outside letters, digits and ``_ . - / : space`` become "_", and so do empty, "." and ".." parts.
    """
    return clean_name(re.sub(r"@(\d+)", r"/nfe_\1", name))


def clean_name(name: str) -> str:
    """A name that MLflow takes for a param or a tag; see metric_name for the characters."""
    parts = re.sub(r"[^/\w.\- :]", "_", name).split("/")
    return "/".join(part if part not in ("", ".", "..") else "_" for part in parts)[:_KEY_LENGTH].rstrip("/")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Params of a nested config: dotted keys; values as text, everything but a string as JSON (null, true, [1])."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            flat[clean_name(key)] = text if len(text) <= _VALUE_LENGTH else text[: _VALUE_LENGTH - 1] + "…"
    return flat


def check_uri(uri: str) -> None:
    """Raise CmrayError unless MLflow (or a plugin of it that is installed) can keep runs at this URI."""
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    allowed = {*_SCHEMES, *plugins}
    try:
        scheme, host, _ = urlsplit(uri).scheme, urlsplit(uri).hostname, urlsplit(uri).port
    except ValueError as error:
        raise CmrayError(f"tracking URI {uri!r} is malformed: {error}") from None
    if uri != "databricks" and scheme.split("+")[0] not in allowed:
        found = f"scheme {scheme!r}" if scheme else "a URI without a scheme"
        raise CmrayError(
            f"tracking URI {without_password(uri)!r}: MLflow keeps no runs at {found}; "
            f"{nearest(scheme, {*allowed, 'none'})}"
        )
    if scheme in ("http", "https") and not host:
        raise CmrayError(f"tracking URI {uri!r} names no host; a server's is like http://127.0.0.1:5000")


def without_password(uri: str) -> str:
    """The URI as it may be shown: without user and password."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return uri if host == parts.netloc else urlunsplit(parts._replace(netloc=host))


def ui_command(uri: str) -> str:
    """The shell command that opens the UI over a store; a server's own URL."""
    shown = without_password(uri)
    if uri == "databricks" or urlsplit(uri).scheme in ("http", "https", "databricks"):
        return shown
    # A password is not printed; who gave such a URI has it in the variable or can put it there.
    store = shlex.quote(uri) if shown == uri else '"$MLFLOW_TRACKING_URI"'
    return f"mlflow ui --backend-store-uri {store} --host 127.0.0.1 --port 5000"
