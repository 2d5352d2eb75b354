"""What visitors leave behind in gradio's memory, within bounds: their sessions, answers that nobody takes, and names of
files on their way."""

import asyncio
import time
from functools import wraps

import gradio as gr
from gradio import route_utils, routes
from gradio.queueing import Queue
from gradio.route_utils import FnIndexInferError, get_fn
from gradio.utils import LRUCache
from starlette.exceptions import HTTPException

from .gate import UNKNOWN

SESSIONS = 256
"""That are remembered, the latest ones, a quarter of a MB each: which choices its fields have now."""
NAME = 64
"""Characters of a session's name, at most; the page's own have 11."""
UNREAD_S = 60
"""Seconds for which an answer waits to be taken, at least."""
UPLOADS = 1000
"""Files on their way whose progress can be asked for."""


def bounded(page: gr.Blocks) -> None:
    """Bounds all of it; before the page is launched, with `SESSIONS` for its `state_session_capacity`."""
    forget(page._queue)
    push = page._queue.push

    @wraps(push)
    async def known(body, request, username):
        named(page, None, body)  # before an older gradio looks for the function by itself
        return await push(body, request, username)

    page._queue.push = known
    page._queue.ANALYTICS_MAX_EVENTS = 1  # else it goes through the latest 10,000 after each
    route_utils.get_fn = named
    routes.file_upload_statuses._statuses, routes.file_upload_statuses._signals = LRUCache(UPLOADS), Signals(UPLOADS)


class Signals(LRUCache):
    """asyncio.Event by name, made where it is asked for; the latest ones."""

    def __missing__(self, name: str) -> asyncio.Event:
        self[name] = asyncio.Event()
        return self[name]


def named(blocks: gr.Blocks, api_name: str | None, body):
    """In place of gradio's search for a function, which remembers the session whatever its name, and breaks where there
    is no such function."""
    if len(body.session_hash or "") > NAME:
        raise HTTPException(400, f"The session's name is longer than {NAME} characters; give a shorter one.")
    try:
        return get_fn(blocks, api_name, body)
    except (FnIndexInferError, KeyError):
        raise HTTPException(404, UNKNOWN) from None


def forget(queue: Queue) -> None:
    """Lets answers go that nobody has taken for `UNREAD_S` seconds, when somebody else asks: gradio keeps those of
    2,000 sessions, and the sessions' names for ever."""
    push, idle, until = queue.push, set(), time.monotonic() + UNREAD_S

    @wraps(push)
    async def sweep(body, request, username):
        nonlocal idle, until
        idle.discard(body.session_hash)
        if time.monotonic() > until:
            until = time.monotonic() + UNREAD_S
            busy = {event.session_hash for event in queue.event_ids_to_events.values()} | {body.session_hash}
            resting = queue.pending_event_ids_session.keys() - busy
            for name in resting & idle:
                queue.pending_messages_per_session.pop(name, None)
                del queue.pending_event_ids_session[name]
            idle = resting - idle
        return await push(body, request, username)

    queue.push = sweep
