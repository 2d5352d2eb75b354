"""What a request may ask and bring: only the page's own ways, no body without end, and no address from which the server
would fetch a file."""

import asyncio
import logging
import re
import resource
from contextlib import suppress
from urllib.parse import urlsplit

import gradio as gr
from gradio import processing_utils
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse

from .cancel import Named
from .room import Room
from .shares import Shared

BODY = 4 << 20
FILE = 20 << 20
"""Bytes of a request, and of a file, at most. A file comes alone, on a way of its own."""
FILES = 8
"""Of a request at most: the page brings one, and a flood of small ones would soon leave no room."""
EACH = b"content-disposition"
"""What the head of each file in a request has."""
UPLOAD = "/gradio_api/upload"
WAYS = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon|(assets|static)/.+)?"
    r"|/gradio_api/(info|openapi\.json|startup-events|app_id|theme\.css|(call|run|api|heartbeat)/.+|queue/(join|data)|cancel"
    r"|reset|upload|upload_progress|file=/.+)"
)
"""What the page and users of the API ask for. Others of gradio's ways keep files, run programs or fetch addresses."""
BEHIND = 1000
"""Characters behind a way's "?" at most: gradio remembers some."""
OWN = ("127.0.0.1", "localhost", "::1")
"""Names by which only this machine's users reach it."""
STRANGE = (
    "Here any model can be named, so that only localhost is answered; to serve others, start `dlip app --models NAMES`."
)
UNKNOWN = "There is no endpoint of this name; those that there are stand under gradio_api/info."
FAILED = "This did not work, and the reason is in the program's log; try it in another way."
FULL = "There is no room for more pictures now; try again in an hour."
PATIENCE_S = 30
"""Seconds that the next part of a body may take to come."""
OPEN = 16_384
"""Connections and files that may be open at once, where the system admits as many."""


class Own:
    """ASGI middleware that answers only those who call this machine by its own name: a name of another page's host may
    lead here too, and by it that page could ask in a visitor's browser for whatever its visitor may."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        own = scope["type"] != "http" or _hostname(Headers(scope=scope).get("host", "")) in OWN
        await (self.app if own else PlainTextResponse(STRANGE, 403))(scope, receive, send)


def _hostname(host: str) -> str | None:
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname


class Told:
    """ASGI middleware: what gradio fails on is a sentence for the visitor, and a line in the log."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        head = None

        async def noted(message):
            nonlocal head
            head = message.get("headers", head)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if head is None:
                return await JSONResponse(*_failed(scope["path"], error))(scope, receive, send)
            if b"content-length" in dict(head):
                raise
            _log(scope["path"], error)  # of a stream, whose last message is what is wrong
            await send({"type": "http.response.body"})


def _failed(way: str, error: Exception) -> tuple[dict, int]:
    """What is answered, and its status."""
    if way.startswith("/gradio_api/call/v2/") and isinstance(error, KeyError | TypeError):  # with arguments by name
        return ({"detail": UNKNOWN}, 404) if isinstance(error, KeyError) else ({"detail": str(error)}, 422)
    _log(way, error)
    return {"detail": FAILED}, 500


def _log(way: str, error: Exception) -> None:
    logging.getLogger("app").error("%.200r failed: %.500r", way, error)


class Narrow:
    """ASGI middleware that knows only `WAYS`; what asks for another gets 404."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        known = scope["type"] != "http" or (
            WAYS.fullmatch(scope["path"]) and len(scope.get("query_string", b"")) <= BEHIND
        )
        await (self.app if known else PlainTextResponse("Not Found", 404))(scope, receive, send)


class Bounded:
    """ASGI middleware that refuses a request's body above `BODY` bytes, or with a file above `FILE` more, and more than
    `FILES`, with 413; one of which nothing comes for `PATIENCE_S`, with 408; a file for which there is no room, or no
    more, with 507."""

    def __init__(self, app):
        self.app, self.room = app, Room()

    async def __call__(self, scope, receive, send):
        brings = scope.get("path") == UPLOAD
        most = BODY + FILE * brings
        left, whole, files, seen = most, False, 0, b""
        if brings and await self.room.full():
            return await PlainTextResponse(FULL, 507)(scope, receive, send)

        async def counted():
            nonlocal left, whole, files, seen
            try:
                message = await asyncio.wait_for(receive(), None if whole else PATIENCE_S)
            except TimeoutError:
                raise HTTPException(408, f"Nothing more came for {PATIENCE_S} seconds; send it again.") from None
            if brings and not whole and message["type"] == "http.disconnect":
                raise HTTPException(400, "The file broke off; send it again.")  # to nobody, and not into the log
            whole = not message.get("more_body", False)
            came = len(body := message.get("body", b""))
            left -= came
            if left < 0:
                raise HTTPException(413, f"The request is longer than {most:,} bytes; send less.")
            if brings:
                seen = seen[1 - len(EACH) :] + body.lower()  # a head may come in two pieces
                files += seen.count(EACH)
                if files > FILES:
                    raise HTTPException(413, f"The request brings more than {FILES} files; send fewer.")
                self.room.taken += came
                if came and await self.room.full():
                    raise HTTPException(507, FULL)
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


async def no_address(url: str, cache_dir: str) -> str:
    """In place of gradio's download of a file that a visitor names by its address."""
    said = "Files are not fetched from addresses here; send the file itself."
    raise gr.Error(said, title="", print_exception=False)


def shut(own: bool = False) -> list[Middleware]:
    """Shuts the gate; the page is to be served with this middleware. Connections that stay open and say nothing shut
    nobody out before there are `OPEN` of them, where a shell's limit is often 1,024. own: whether only this machine's
    own users are let in."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN if most == resource.RLIM_INFINITY else min(OPEN, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    processing_utils.async_ssrf_protected_download = no_address
    return [Middleware(each) for each in (*[Own] * own, Told, Shared, Narrow, Bounded, Named)]
