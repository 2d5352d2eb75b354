"""Between the page and the functions behind it: mistakes as one sentence, queues, endpoints with documented types."""

import inspect
import json
import logging
import typing
from collections.abc import Callable
from functools import wraps
from html import escape

import gradio as gr
from gradio.components.api_component import Api
from gradio_client.utils import python_type_to_json_schema

from dlip.common.errors import UserError

from . import models
from .view import parts

CHECKING = (gr.Number, gr.Slider, gr.Radio, gr.Dropdown, gr.CheckboxGroup, gr.Textbox)
"""Components that refuse values in words of their own, or take anything for a text."""
LATEST = {"trigger_mode": "always_last"}
"""Option of an event: the latest choice made while an earlier one is answered is answered next, and not lost."""
QUICK = {"concurrency_id": "quick", "concurrency_limit": 4, **LATEST}
SEARCH = {"concurrency_id": "search", "concurrency_limit": 1, **LATEST}
LONG = {"concurrency_id": "long", "concurrency_limit": 1}
CHOICE = {"concurrency_id": "choice", "concurrency_limit": 1, **LATEST}
"""Options of an event: lines of visitors, so that nobody with a short question waits behind a long measurement, nor
behind a model that is being loaded: others of the four then take `models.turn`."""
DURATION = 15
"""Seconds that a sentence stays at the edge of the page."""
BUSY = "Too many visitors wait at this moment; reload the page in a minute."
UNKNOWN = "This did not work, and the reason is in the program's log; try another picture, text or model"


def at_once(value: object) -> str:
    """The `js` of an event whose outputs are the same whatever its inputs: the page sets them without a request, which
    might come after that of a later event."""
    return f"() => ({json.dumps(value)})"


def after(events: list) -> Callable:
    """What `gr.on(events, ...)` is, for functions in a line of `LATEST`; each event has to come by here.

    Gradio takes a deferred event up by telling all who listen to it once more: two that defer would then wake each
    other without end, with an earlier choice's data. Behind a step of its own a deferred run repeats nothing else.
    """
    return gr.on(events, None, js="() => {}", api_visibility="private", trigger_mode="multiple").then


def guarded(function: Callable, long: bool = False) -> Callable:
    """The function, or generator function, of an event: a UserError, or a fault, becomes one sentence on the page.

    It holds `models.turn` unless `long`; a long one takes the turn itself around each step.
    """
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def steps(*args):
            with _sentences():
                yield from function(*args)

        return steps

    @wraps(function)
    def call(*args):
        with _sentences():
            if long:
                return function(*args)
            with models.turn:
                return function(*args)

    return call


def following(function: Callable, instead: Callable[[str], object]) -> Callable:
    """The function of an event that follows a choice made elsewhere on the page: a mistake, or a fault, leaves nothing
    there that belongs to an earlier choice, but what `instead` makes of the sentence, ready for HTML.
    """

    @wraps(function)
    def call(*args):
        with models.turn:
            try:
                return function(*args)
            except Exception as error:
                return instead(_told(error))

    return call


def or_busy(event: gr.events.Dependency, places: list[gr.HTML]) -> gr.events.Dependency:
    """The event that follows a choice; where the queue has no room for it, its places, and those of what follows it,
    show `BUSY` and nothing that belongs to an earlier choice."""
    said = [parts.hint(BUSY), *[""] * (len(places) - 1)]
    event.failure(None, None, places, js=at_once(said), api_visibility="private")
    return event


def toast(said: str) -> str:
    """Tells of a mistake at the edge of the page, and shows nothing else."""
    gr.Warning(said, duration=DURATION, title="")
    return ""


def nothing(said: str) -> str:
    """Where another event tells of the mistake."""
    return ""


class _sentences:
    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or not isinstance(error, Exception) or isinstance(error, gr.Error):
            return False
        raise gr.Error(_told(error), duration=DURATION, title="", print_exception=False) from None


def _told(error: Exception) -> str:
    """One sentence, ready for HTML; what is no user's mistake goes to the log."""
    if not isinstance(error, UserError):
        logging.getLogger("app").error("an event failed", exc_info=error)
    return escape(sentence(str(error) if isinstance(error, UserError) else UNKNOWN), quote=False)


def sentence(text: str) -> str:
    """With a capital letter and a full stop, on one line."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def legible(page: gr.Blocks) -> None:
    """What of a request's inputs gradio itself cannot make anything of is one sentence too."""
    read = page.preprocess_data

    @wraps(read)
    async def told(function, inputs, *rest, **named):
        try:
            return await read(function, inputs, *rest, **named)
        except Exception as error:
            if isinstance(error, gr.Error) and not error.print_exception:  # said by this app
                raise
            few = f"{len(inputs)} values came, and {len(function.inputs)} are needed"
            said = few if len(inputs) < len(function.inputs) else "a value is none that its field takes"
            said = f"{said}; look under gradio_api/info, and send a picture's file first, as gradio_client does"
            raise gr.Error(sentence(said), duration=DURATION, title="", print_exception=False) from None

    page.preprocess_data = told


def endpoint(function: Callable, inputs: list, long: bool = False, line: dict | None = None) -> None:
    """Makes a pure function callable over the API by its own name, its docstring and return type as documentation.

    inputs: the page's components that stand for its parameters, in order; they say what each may be, and the function
    itself checks it, so that there is one sentence whatever is sent. line: of visitors; by default `QUICK`, or `LONG`
    where `long`.
    """
    for part in inputs:
        if isinstance(part, CHECKING):
            part.preprocess = lambda value: value
    result = Api(None, python_type_to_json_schema(typing.get_type_hints(function)["return"]), "result")
    line = line or (LONG if long else QUICK)
    gr.on([], guarded(function, long), inputs, result, api_name=function.__name__, **line)
