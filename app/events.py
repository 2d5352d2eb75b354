"""Event handlers: errors as one sentence on the page, queues, and API endpoints with documented types."""

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from html import escape

import gradio as gr

from dlip.common.errors import UserError

from . import gradio_workarounds, models
from .view import parts

VALIDATING = (gr.Number, gr.Slider, gr.Radio, gr.Dropdown, gr.CheckboxGroup, gr.Textbox)
"""Components whose values gradio would validate in its own words."""
LATEST = {"trigger_mode": "always_last"}
"""Option of an event: of the choices made while it runs, the latest one is answered next."""
PRIVATE = {"api_visibility": "private"}
"""Option of an event with a function that is no API endpoint."""
QUICK = {"concurrency_id": "quick", "concurrency_limit": 4, **LATEST, **PRIVATE}
SEARCH = {"concurrency_id": "search", "concurrency_limit": 1, **LATEST, **PRIVATE}
LONG = {"concurrency_id": "long", "concurrency_limit": 1, **PRIVATE}
CHOICE = {"concurrency_id": "choice", "concurrency_limit": 1, **LATEST, **PRIVATE}
"""Options of the page's own events that name their queue: a short question never waits behind a long measurement or a
model that is being loaded."""
MESSAGE_S = 8
"""Seconds that an error message stays on the page."""
BUSY = "Too many visitors are waiting; reload the page in a minute."
FAILED = "This failed, and the reason is in the program's log; try another image, text or model"


def set_in_page(value: object) -> str:
    """The `js` of an event that sets its outputs to a constant, without a request that could arrive late."""
    return f"() => ({json.dumps(value)})"


def chain(triggers: list) -> Callable:
    """`gr.on(triggers, ...)` for handlers with `LATEST`.

    Gradio runs a deferred event by triggering all listeners once more, so that two that defer would trigger each other
    for ever. Behind a step of its own, a deferred event triggers nothing else.
    """
    return gr.on(triggers, None, js="() => {}", trigger_mode="multiple").then


def guarded(function: Callable, long: bool = False) -> Callable:
    """Event handler that shows an exception as one sentence on the page, and holds `models.turn` unless `long`.

    A long function takes the turn itself around each step.
    """

    @wraps(function)
    def call(*args):
        try:
            with nullcontext() if long else models.turn:
                return function(*args)
        except gr.Error:
            raise
        except Exception as exception:
            raise error(message(exception)) from None

    return call


def handled(function: Callable, on_error: Callable[[str], object]) -> Callable:
    """Event handler that on an exception returns `on_error(message)`, so that no earlier result stays. The message is
    HTML."""

    @wraps(function)
    def call(*args):
        with models.turn:
            try:
                return function(*args)
            except Exception as error:
                return on_error(message(error))

    return call


def or_busy(event: gr.events.Dependency, outputs: list[gr.HTML]) -> gr.events.Dependency:
    """The event; if the queue is full, its first output shows `BUSY` and the others are cleared."""
    values = [parts.hint(BUSY), *[""] * (len(outputs) - 1)]
    event.failure(None, None, outputs, js=set_in_page(values))
    return event


def warn(message: str) -> str:
    """Show a message in the corner of the page, and nothing as the event's output."""
    gr.Warning(message, duration=MESSAGE_S, title="")
    return ""


def ignore(message: str) -> str:
    """Show nothing: another event shows the message."""
    return ""


def error(text: str) -> gr.Error:
    """An error message that is one sentence."""
    return gr.Error(as_sentence(text), duration=MESSAGE_S, title="", print_exception=False)


def message(exception: Exception) -> str:
    """One sentence of HTML; an exception that is no UserError is logged."""
    if not isinstance(exception, UserError):
        logging.getLogger("app").error("an event failed", exc_info=exception)
    return escape(as_sentence(str(exception) if isinstance(exception, UserError) else FAILED), quote=False)


def as_sentence(text: str) -> str:
    """The text on one line, with a capital letter and a full stop."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def endpoint(function: Callable, inputs: list, queue: dict = QUICK) -> None:
    """Add an API endpoint named after a function, documented by its docstring and return type.

    inputs: the components of the page that document its parameters, in order; the function validates the values itself.
    queue: a function in another queue than `QUICK` takes `models.turn` itself.
    """
    for component in inputs:
        if isinstance(component, VALIDATING):
            gradio_workarounds.take_raw_value(component)
    handler = guarded(function, long=queue is not QUICK)
    public = {**queue, "api_visibility": "public"}
    gr.on([], handler, inputs, gradio_workarounds.typed_result(function), api_name=function.__name__, **public)
