"""The studio's server: on loopback, with everything that it writes in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmray.core.errors import CmrayError
from cmray.studio.shelf import Shelf

HOST, PORT = "127.0.0.1", 7860
_HEADERS = {
    b"content-security-policy": b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    b"connect-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'none'; form-action 'self'; "
    b"base-uri 'self'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


def check_installed() -> None:
    """Raises CmrayError where gradio is not here."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise CmrayError("the studio needs gradio, which is not installed: pip install 'cmray[studio]'")


def free_port(wanted: int | None) -> int:
    """The port that was asked for; else 7860, or another one where that is in use. Raises CmrayError."""
    problem: str | None = None
    for port in (PORT, 0) if wanted is None else (wanted,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return probe.getsockname()[1]
            except OSError as error:
                problem = error.strerror
    raise CmrayError(f"port {wanted} on {HOST} is in use ({problem}); give another with --port")


def serve(shelf: Shelf, port: int, ready: Callable[[str], None]) -> None:
    """Serves until it is interrupted, then leaves nothing behind.

    Args:
        ready: told the address once a browser can open it.
    """
    folder = Path(tempfile.mkdtemp(prefix="cmray-studio-"))
    try:
        _settle(folder)
        from cmray.studio.app import CSS, build, theme

        blocks = build(shelf)
        try:
            blocks.launch(
                server_name=HOST, server_port=port, share=False, inbrowser=False, quiet=True, footer_links=[],
                prevent_thread_lock=True, show_error=False, ssr_mode=False, pwa=False, mcp_server=False,
                run_history=False, enable_monitoring=False, max_file_size="32mb", theme=theme(), css=CSS,
                app_kwargs={"middleware": _middleware()},
            )  # fmt: skip
            ready(f"http://{HOST}:{port}")
            threading.Event().wait()
        except KeyboardInterrupt:  # the only way to end it
            pass
        finally:
            blocks.close(verbose=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Sets gradio up before it is imported: its files, no questions to other hosts, nothing of the user's variables."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    for name in ("NO_PROXY", "no_proxy"):  # it asks itself whether it answers, which is no proxy's business
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST, "localhost"]))
    tempfile.tempdir = str(folder)  # uploads on their way


def _middleware() -> list[Any]:
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # a page of another site that resolves its own name to 127.0.0.1 is not answered
    return [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]), Middleware(_Headers)]


class _Headers:
    """Tells browsers to ask no other host for anything."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS.items()]
            await send(message)

        await self._app(scope, receive, marked)
