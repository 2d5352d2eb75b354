"""What the page and the API share: checked arguments, errors as one sentence, queues, and jobs that can be stopped.

`offer` makes one function both an endpoint of the API and the answer to events of the page.
"""

import inspect
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from html import escape
from typing import Annotated

import gradio as gr
from pydantic import BeforeValidator, ConfigDict, StringConstraints, ValidationError, validate_call

from dlip.common.errors import UserError
from dlip.common.text import replace_surrogates

from . import images, models
from .view import parts

QUICK = {"concurrency_id": "quick", "concurrency_limit": 1}
SEARCH = {"concurrency_id": "search", "concurrency_limit": 1}
LONG = {"concurrency_id": "long", "concurrency_limit": 1}
"""Options of an event that name its queue, so that a caption never waits behind a measurement."""
PAGE = {"api_visibility": "private", "trigger_mode": "multiple"}
"""Options of an event of the page that is no endpoint."""
MAX_CHARACTERS = 1000
CONTROL_CHARACTERS = dict.fromkeys((*range(32), 127), " ")


def one_line(value: object) -> object:
    """A text without control characters and lone surrogates, "" for None; pydantic refuses any other value."""
    if not isinstance(value, str | None):
        return value
    return " ".join(replace_surrogates(value or "").translate(CONTROL_CHARACTERS).split())


Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS), BeforeValidator(one_line)]
"""Annotation of a parameter: a text of one line, which may be empty."""
Words = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS), BeforeValidator(one_line)]
"""Annotation of a parameter: a text of one line, which may not be empty."""


def checked(function: Callable) -> Callable:
    """The function; raises UserError for an argument that does not fit its annotation."""
    validated = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)
    parameters = [*inspect.signature(function).parameters]

    @wraps(function)
    def call(*args, **kwargs):
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:
            fault = error.errors()[0]
            place = fault["loc"][0]
            name = (parameters[place] if isinstance(place, int) else place).replace("_", " ")
            raise UserError(f"{name} is {fault['input']!r:.40}: {fault['msg']}") from None

    return call


def as_sentence(text: str) -> str:
    """The text on one line, with a capital letter and a full stop."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def hint_of(error: UserError) -> str:
    """The message in the place of a result, as HTML."""
    return parts.hint(escape(as_sentence(str(error)), quote=False))


def api(function: Callable, queue: dict = QUICK) -> None:
    """Add an API endpoint named after a function, documented by its docstring and types.

    A function in another queue than `QUICK` takes `models.turn` itself. A parameter `progress` is left out.
    """
    signature = inspect.signature(function)
    parameters = [one for name, one in signature.parameters.items() if name != "progress"]

    @wraps(function)
    def call(*values):
        arguments = {one.name: value for one, value in zip(parameters, values, strict=False)}
        try:
            if "image" in arguments:
                arguments["image"] = images.uploaded(arguments["image"])
            with models.turn if queue is QUICK else nullcontext():
                return function(**arguments)
        except UserError as error:
            raise gr.Error(as_sentence(str(error)), title="", print_exception=False) from None

    call.__signature__ = signature.replace(parameters=parameters)
    gr.api(call, **queue)


def answered(function: Callable, errors: Callable[[UserError], object] = hint_of, quick: bool = True) -> Callable:
    """Event handler that returns `errors(exception)` for a user's mistake, so that no earlier result stays.

    quick: hold `models.turn`; long work takes it around each step.
    """

    @wraps(function)
    def call(*values):
        with models.turn if quick else nullcontext():
            try:
                return function(*values)
            except UserError as error:
                return errors(error)

    return call


def offer(
    function: Callable,
    show: Callable,
    triggers: list,
    inputs: list,
    output: gr.HTML,
    queue: dict = QUICK,
) -> None:
    """Make a function an endpoint, and its result the answer to events of the page.

    show: makes HTML of the result and the names of teacher and student.
    """
    names = [*inspect.signature(function).parameters]
    sides = [names.index(side) for side in parts.SIDES]

    def event(*values):
        return show(function(*values), tuple(values[i] for i in sides))

    api(function, queue)
    handler = answered(event, quick=queue is QUICK)
    gr.on(triggers, handler, inputs, output, show_progress="minimal", **queue, **PAGE)


_stops: dict[str, threading.Event] = {}
"""Session -> the event that stops its job."""


def stop_job(request: gr.Request) -> None:
    """Stop the long job of a visitor, who pressed Stop or left the page."""
    if stopped := _stops.get(request.session_hash):
        stopped.set()


def run_job(
    start: gr.Button,
    stop: gr.Button,
    function: Callable,
    errors: Callable[[UserError], object],
    inputs: list,
    outputs: list,
    label: str,
    shown: gr.HTML,
) -> None:
    """Run `function(*inputs, progress)` when `start` is clicked, with a progress bar over `shown`, until `stop` is."""

    def job(request: gr.Request, bar=gr.Progress(), *values):  # noqa: B008
        stopped = _stops[request.session_hash] = threading.Event()

        def step(fraction: float) -> None:
            if stopped.is_set():
                raise UserError("stopped")
            bar(fraction, desc=label)

        try:
            step(0.0)
            return function(*values, step)
        except UserError as error:
            return errors(error)
        finally:
            _stops.pop(request.session_hash, None)

    start.click(job, inputs, outputs, show_progress_on=shown, **LONG, **PAGE)
    stop.click(stop_job, queue=False, **PAGE)
