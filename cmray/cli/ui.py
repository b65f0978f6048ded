"""`cmray ui`."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import typer

from cmray.cli.console import errors
from cmray.cli.options import DEFAULT_STORAGE, Storage, TrackingUri
from cmray.core.errors import CmrayError
from cmray.tracking.names import without_password


def ui(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
) -> None:
    """Open MLflow on the results, on this machine only. Ctrl-C ends it.

    Example: cmray ui --port 5000
    """
    storage = storage.expanduser().absolute()
    uri = tracking_uri or f"sqlite:///{storage}/mlflow.db"
    if uri.startswith("http"):
        errors.print(f"MLflow already runs: open {without_password(uri)} in a browser", highlight=False, soft_wrap=True)
        return
    if tracking_uri is None and not (storage / "mlflow.db").is_file():
        raise CmrayError(f"{storage} has no mlflow.db yet; `cmray sweep experiments/quickstart.yaml` makes one")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise CmrayError(
                f"port {port} on 127.0.0.1 is in use ({error.strerror}); give another with --port"
            ) from None
    errors.print(f"MLflow at http://127.0.0.1:{port} (Ctrl-C ends it)", highlight=False)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # not among the arguments: it may hold a password
    # one reader needs no job queue; without this MLflow starts eleven processes
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.execv(sys.executable, command)  # Ctrl-C and SIGTERM reach MLflow itself
