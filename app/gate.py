"""What a request may bring: no body without end, and no address from which the server would fetch a file."""

import gradio as gr
from gradio import processing_utils
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

BODY = 4 << 20
FILE = 20 << 20
"""Bytes of a request, and of a file, at most. A file comes alone, on a way of its own."""
UPLOAD = "/gradio_api/upload"


class Bounded:
    """ASGI middleware that refuses a request's body above `BODY` bytes, or with a file above `FILE` more, with 413."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        most = BODY + FILE * (scope.get("path") == UPLOAD)
        left = most

        async def counted():
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"The request is longer than {most:,} bytes; send less.")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


async def no_address(url: str, cache_dir: str) -> str:
    """In place of gradio's download of a file that a visitor names by its address."""
    said = "Files are not fetched from addresses here; send the file itself."
    raise gr.Error(said, title="", print_exception=False)


def shut() -> list[Middleware]:
    """Shuts the gate; the page is to be served with this middleware."""
    processing_utils.async_ssrf_protected_download = no_address
    return [Middleware(Bounded)]
