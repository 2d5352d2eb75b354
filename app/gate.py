"""What a request may ask and bring: only the page's own ways, a part of the queue, no head or body without end, and no
address from which the server would fetch a file."""

import asyncio
import json
import logging
import re
import resource
import time
from collections import Counter
from contextlib import suppress
from functools import wraps
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from gradio import processing_utils
from gradio.queueing import Event, Queue
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

from app.room import Room

BODY = 4 << 20
FILE = 20 << 20
"""Bytes of a request, and of a file, at most. A file comes alone, on a way of its own."""
FILES = 8
"""Of a request at most: the page brings one, and a flood of small ones would soon leave no room."""
EACH = b"content-disposition"
"""What the head of each file in a request has."""
UPLOAD = "/gradio_api/upload"
ENDS = ("/gradio_api/cancel", "/gradio_api/reset")
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
AT_ONCE = 1000
"""Requests of an address that may be open at once; a page has up to six."""
MANY = f"Your address has {AT_ONCE:,} requests open already; end some."
UNKNOWN = "There is no endpoint of this name; those that there are stand under gradio_api/info."
FAILED = "This did not work, and the reason is in the program's log; try it in another way."
FULL = "There is no room for more pictures now; try again in an hour."
PATIENCE_S = 30
"""Seconds that the next part of a body may take to come, and a request's head from a connection's beginning on."""
WAY_S = 5
"""Seconds that a request to begin work may be under way when the one to cancel it is here already."""
NO_KIND = -1
"""A "fn_index" that is no function's."""
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


class Shared:
    """ASGI middleware that refuses an address with 429 while `AT_ONCE` of its requests are open."""

    def __init__(self, app):
        self.app, self.open = app, Counter()

    async def __call__(self, scope, receive, send):
        host = (scope.get("client") or [""])[0]
        if self.open[host] >= AT_ONCE:
            return await PlainTextResponse(MANY, 429)(scope, receive, send)
        self.open[host] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.open.subtract([host])
            if not self.open[host]:
                del self.open[host]


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


class Named:
    """ASGI middleware by which work that a page cancels ends, and nothing else: gradio would end all work of the same
    kind in the page's session, also what was started since. The page learns a work's name by the answer to its request,
    and cancels without one (which gradio answers with 422, and goes on) until that is there."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] not in ENDS or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        read = False

        async def named():  # within the route, where the refusal of a body becomes an answer
            nonlocal read
            if read:
                return await receive()
            read = True
            body = await Request(scope, receive).body()
            return {"type": "http.request", "body": await name(scope["app"].get_blocks()._queue, body)}

        await self.app(scope, named, send)


async def name(queue: Queue, body: bytes) -> bytes:
    """The body of a request to cancel, of no kind of work but with its "event_id", whose event nobody waits for any
    more: if it has none, that of the session's work of its kind, for which it waits up to `WAY_S` seconds, or an empty
    one."""
    try:
        asked = json.loads(body)
        known = asked["event_id"]
    except (ValueError, RecursionError, KeyError, TypeError):  # gradio's to refuse
        return body
    kind = asked.get("session_hash"), asked.get("fn_index")
    end = asyncio.get_running_loop().time() + WAY_S * (kind != (None, None))
    while known is None:
        of_kind = (key for key, event in queue.event_ids_to_events.items() if event.alive and _kind(event) == kind)
        known = next(of_kind, "" if asyncio.get_running_loop().time() > end else None)
        await asyncio.sleep(0.1 * (known is None))  # of many who ask, too, others notice little
    if kind == (None, None):  # a reset, of which gradio makes nothing
        return json.dumps(asked | {"event_id": known}).encode()
    for event in (event for key, event in queue.event_ids_to_events.items() if key == known):
        event.alive = False
    return json.dumps(asked | {"event_id": known, "fn_index": NO_KIND}).encode()


def _kind(event: Event) -> tuple[str | None, int]:
    return event.session_hash, event.fn._id


def fair(queue: Queue) -> None:
    """Gives an address half of the room in the queue that others leave, so that no few of them fill it, and lets
    addresses take turns in each line. Visitors behind one proxy are one address."""
    push = queue.push

    @wraps(push)
    async def fairly(body, request, username):
        lines = queue.event_queue_per_concurrency_id
        hosts = [_host(event) for line in lines.values() for event in line.queue]
        mine = hosts.count(request.client.host)
        if mine and mine >= (queue.max_size - len(hosts) + mine) // 2:
            said = f"{mine} of your address's requests wait already; try again when they are answered."
            return False, said, "queue_full"
        pushed = await push(body, request, username)
        for line in lines.values():
            before = Counter()
            line.queue.sort(key=lambda event: before.update([_host(event)]) or before[_host(event)])
        return pushed

    queue.push = fairly


def _host(event: Event) -> str:
    return event.request.client.host


def hang_up(server: uvicorn.Server) -> None:
    """Closes each connection that has waited `PATIENCE_S` seconds for a whole head of a request, its first or its next:
    uvicorn waits for ever, and each takes one of the system's places."""
    tick, since = server.on_tick, {}

    @wraps(tick)
    async def look(counter: int) -> bool:
        now = time.monotonic()
        lines = [line for line in server.server_state.connections if hasattr(line, "cycle")]
        waiting = {(line, line.cycle) for line in lines if line.cycle is None or line.cycle.response_complete}
        for key in since.keys() - waiting:
            del since[key]
        for line, cycle in waiting:
            if now - since.setdefault((line, cycle), now) > PATIENCE_S:
                line.transport.close()
        return await tick(counter)

    server.on_tick = look


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
