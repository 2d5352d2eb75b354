"""Workarounds for gradio 6.28 to 6.31: the only code that touches its private parts.

`pyproject.toml` keeps gradio below its next minor version, which may change any of these parts. Each item says when it
can be deleted.
"""

import asyncio
import json
import typing
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import gradio as gr
from gradio import processing_utils
from gradio.components.api_component import Api
from gradio.context import LocalContext
from gradio.queueing import Queue
from gradio.route_utils import FnIndexInferError
from gradio_client.utils import python_type_to_json_schema
from starlette.requests import Request

from dlip.common.text import plural

EVENT_STREAM = f"<script>{(Path(__file__).parent / 'view' / 'event_stream.js').read_text()}</script>"
"""For the page's head: no answer is lost at the end of the event stream, of two answers to one place the one to the
later request stays, and no answer is shown to a request that was cancelled before the page knew its id. Can go when
gradio's client does so."""


def is_unknown_endpoint(error: Exception, path: str) -> bool:
    """Whether gradio raised this as a request named an endpoint that does not exist. Can go when it answers 404."""
    names_endpoint = "/gradio_api/call/" in path or path.endswith("/queue/join")
    return isinstance(error, FnIndexInferError) or (isinstance(error, KeyError) and names_endpoint)


def refuse_downloads() -> None:
    """Refuse files that a request names by URL. Can go when gradio has a setting for it."""

    async def refuse(url: str, cache_dir: str) -> str:
        message = "Files are not fetched from URLs; upload the file itself."
        raise gr.Error(message, title="", print_exception=False)

    processing_utils.async_ssrf_protected_download = refuse


def take_raw_value(component: gr.components.Component, read: Callable = lambda value: value) -> None:
    """Pass a component's value to its functions as `read` returns it, not as gradio validates it.

    Can go when gradio lets an app word the validation errors of its components.
    """
    component.preprocess = read


def typed_result(function: Callable) -> Api:
    """An output that documents a function's return type. Can go when `gr.on` documents it, as `gr.api` does."""
    return Api(None, python_type_to_json_schema(typing.get_type_hints(function)["return"]), "result")


def friendly_input_errors(page: gr.Blocks, message: Callable[[str], gr.Error]) -> None:
    """Answer inputs that gradio cannot read with `message(reason)`. Can go when gradio shows a reason by itself."""
    preprocess_data = page.preprocess_data

    @wraps(preprocess_data)
    async def preprocess(function, inputs, *args, **kwargs):
        try:
            return await preprocess_data(function, inputs, *args, **kwargs)
        except Exception as error:
            if isinstance(error, gr.Error) and not error.print_exception:  # worded by this app
                raise
            count, needed = len(inputs), len(function.inputs)
            too_few = f"got {plural(count, 'value')} instead of {needed}" if count < needed else ""
            reason = too_few or "a value has the wrong type"
            raise message(f"{reason}; see gradio_api/info, and upload images first as gradio_client does") from None

    page.preprocess_data = preprocess


def awaited() -> Callable[[], bool]:
    """Whether somebody still waits for the event that calls this: false once its visitor stopped it or left.

    Can go when gradio cancels functions that are not generators.
    """
    event = LocalContext.blocks.get()._queue.event_ids_to_events[LocalContext.event_id.get()]
    return lambda: event.alive


class CancelOneEvent:
    """ASGI middleware: a request to cancel ends one event, also where the page does not know the event's id yet.

    Gradio cancels every event of that function in the session, one that was started since included, and answers 422 to
    a page that cancels before the response to its request has arrived. Can go when gradio does neither.
    """

    PATHS = ("/gradio_api/cancel", "/gradio_api/reset")

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] not in self.PATHS or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        was_read = False

        async def receive_rewritten():  # inside the route, where exceptions become responses
            nonlocal was_read
            if was_read:
                return await receive()
            was_read = True
            body = await Request(scope, receive).body()
            return {"type": "http.request", "body": await cancel_one(scope["app"].get_blocks()._queue, body)}

        await self.app(scope, receive_rewritten, send)


UNSENT_S = 5
"""Seconds that the request that starts an event may arrive after the one that cancels it."""


async def cancel_one(queue: Queue, body: bytes) -> bytes:
    """Mark the event of a request to cancel as no longer awaited; return the request with the event's id alone.

    Without an id, the session's first event of that function is meant. A body that is no such request is returned as it
    is, for gradio to refuse.
    """
    try:
        request = json.loads(body)
        event_id = request["event_id"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return body
    if not isinstance(event_id, str | None):
        return body
    session_and_function = request.get("session_hash"), request.get("fn_index")
    loop = asyncio.get_running_loop()
    end = loop.time() + UNSENT_S * (session_and_function != (None, None))  # a reset names neither
    while event_id is None:
        events = queue.event_ids_to_events.items()
        ids = (key for key, one in events if one.alive and (one.session_hash, one.fn._id) == session_and_function)
        event_id = next(ids, "" if loop.time() >= end else None)
        await asyncio.sleep(0.1 * (event_id is None))
    if event_id in queue.event_ids_to_events and session_and_function != (None, None):
        queue.event_ids_to_events[event_id].alive = False
    return json.dumps(request | {"event_id": event_id, "fn_index": -1}).encode()
