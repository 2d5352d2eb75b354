"""Work that a page cancels, by its name."""

import asyncio
import json

from gradio.queueing import Event, Queue
from starlette.requests import Request

ENDS = ("/gradio_api/cancel", "/gradio_api/reset")
WAY_S = 5
"""Seconds that a request to begin work may be under way when the one to cancel it is here already."""
NO_KIND = -1
"""A "fn_index" that is no function's."""


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
