"""What a request may send and read: bodies of a limited size, uploaded images alone, and models from a fixed list.

Limits on each address, timeouts and TLS are the reverse proxy's: see `docs/deploy.md`.
"""

import logging
import os
from pathlib import Path

import gradio as gr
from gradio.data_classes import ImageData
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse

from .gradio_workarounds import CancelOneEvent, is_unknown_endpoint, refuse_downloads

MAX_BODY, MAX_FILE = 4 << 20, 20 << 20
"""Bytes of a request and of an uploaded file."""
UPLOAD_PATH = "/gradio_api/upload"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names by which only this machine's users reach the app."""
NO_ENDPOINT = "There is no such endpoint; see gradio_api/info for all of them."
FAILED = "The request failed; the reason is in the program's log."


def is_public() -> bool:
    """Whether other machines reach the page: in a Space, or if GRADIO_SERVER_NAME is not a local host."""
    return "SPACE_ID" in os.environ or os.environ.get("GRADIO_SERVER_NAME", LOCAL_HOSTS[0]) not in LOCAL_HOSTS


def uploaded_path(payload: ImageData | None) -> str | None:
    """Path of the image in a request. Raises gr.Error for a file that was not uploaded here."""
    if payload is None or payload.path is None:
        return None
    uploads = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    if not Path(payload.path).resolve().is_relative_to(uploads):
        message = "This image was not uploaded here; upload its file first, as gradio_client's handle_file does."
        raise gr.Error(message, title="", print_exception=False)
    return payload.path


class ErrorsToJson:
    """ASGI middleware: an exception becomes a JSON error for the client and one line in the log."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        started = False

        async def send_and_note(message):
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            if not started and is_unknown_endpoint(error, scope.get("path", "")):
                return await JSONResponse({"detail": NO_ENDPOINT}, 404)(scope, receive, send)
            logging.getLogger("app").error("%.200r failed: %.500r", scope.get("path"), error)
            if not started:
                return await JSONResponse({"detail": FAILED}, 500)(scope, receive, send)
            await send({"type": "http.response.body"})


class BodyLimit:
    """ASGI middleware that answers 413 to a body above its limit, whether or not the request declares its length."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        limit = MAX_BODY + MAX_FILE * (scope.get("path") == UPLOAD_PATH)
        received = 0

        async def receive_within_limit():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"The request has more than {limit:,} bytes; send less.")
            return message

        await self.app(scope, receive_within_limit if scope["type"] == "http" else receive, send)


def middleware(local_only: bool) -> list[Middleware]:
    """The middleware of the app, which also refuses downloads. local_only: answer requests to this machine's own names
    alone, as a page elsewhere could otherwise reach the app through its visitor's browser (DNS rebinding)."""
    refuse_downloads()
    hosts = [Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS)] if local_only else []
    return [*hosts, Middleware(ErrorsToJson), Middleware(BodyLimit), Middleware(CancelOneEvent)]
