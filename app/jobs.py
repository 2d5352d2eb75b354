"""Long jobs: other requests run between their steps, and the visitor can stop them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import gradio as gr

from dlip.common.errors import UserError

from . import gradio_workarounds, models
from .events import LONG, guarded, set_in_page

Progress = Callable[[float], object]
LIMIT_S = 300
"""Seconds that one job may take."""


@contextmanager
def turns(progress: Progress | None = None) -> Iterator[Progress]:
    """Hold `models.turn`; yield a `progress` callback for dlip's long functions that lets others take a turn.

    The callback raises UserError after `LIMIT_S` seconds.
    """
    end = time.monotonic() + LIMIT_S

    def step(share: float) -> None:
        if time.monotonic() > end:
            raise UserError(f"this job reached its limit of {LIMIT_S} seconds; choose a smaller one")
        models.turn.release()
        try:
            if progress:
                progress(share)
            time.sleep(0.001)  # a lock that is released and acquired at once goes to nobody else
        finally:
            models.turn.acquire()

    with models.turn:
        yield step


def stoppable(progress: Progress) -> Progress:
    """A `progress` callback that ends the job of the current event once its visitor has stopped it or left the page."""
    awaited = gradio_workarounds.awaited()

    def step(share: float) -> None:
        if not awaited():
            raise gr.Error("Stopped.", visible=False, print_exception=False)
        progress(share)

    return step


def stop_button(elem_id: str) -> gr.Button:
    """A button that stops a job, visible while the job runs."""
    return gr.Button("Stop", visible=False, elem_id=elem_id, scale=0, min_width=120)


def on_start(
    start: gr.Button, stop: gr.Button, function: Callable, inputs: list, outputs, cancel_on: list,
    cancel_events: Sequence = (), **options,
):  # fmt: skip
    """Run a job when its start button is clicked.

    cancel_on: inputs whose change makes the job pointless and stops it. cancel_events: other events that do. All but
    the job itself happens in the page, as a request might arrive after the one that starts the next job.
    """
    hide = set_in_page(gr.update(visible=False))
    start.click(None, None, stop, js=set_in_page(gr.update(visible=True)))
    job = start.click(guarded(function, long=True), inputs, outputs, **LONG, **options)
    for triggers in ([component.change for component in cancel_on] + [*cancel_events], [stop.click]):
        gr.on(triggers, None, None, stop, js=hide, cancels=job, trigger_mode="multiple")
    for end in (job.then, job.failure):
        end(None, None, stop, js=hide)
