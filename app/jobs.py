"""Long work: others get in between its steps, and its visitor can stop it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr
from gradio.context import LocalContext

from dlip.common.errors import UserError

from . import events, models

Progress = Callable[[float], object]
LIMIT_S = 300
"""Seconds that one visitor's work may take."""


@contextmanager
def turns(progress: Progress | None = None) -> Iterator[Progress]:
    """Holds `models.turn`; yields what dlip's long functions take as `progress`, during which others take a turn.

    It raises UserError after `LIMIT_S` seconds.
    """
    end = time.monotonic() + LIMIT_S

    def step(share: float) -> None:
        if time.monotonic() > end:
            raise UserError(f"this has taken the {LIMIT_S} seconds that it may take here; choose less of it")
        models.turn.release()
        try:
            if progress:
                progress(share)
            time.sleep(0.001)  # a lock that is let go and taken at once goes to nobody else
        finally:
            models.turn.acquire()

    with models.turn:
        yield step


def stoppable(progress: Progress) -> Progress:
    """`progress` that ends the work of the event that it is called in, silently, as soon as nobody waits for it: its
    visitor has stopped it, or has left the page."""
    queue, name = LocalContext.blocks.get()._queue, LocalContext.event_id.get()
    event = queue.event_ids_to_events[name]

    def step(share: float) -> None:
        if not event.alive:
            raise gr.Error("Stopped, as you asked.", visible=False, print_exception=False)
        progress(share)

    return step


def stop_button(elem_id: str) -> gr.Button:
    """What stops long work; it is there only while that goes on."""
    return gr.Button("Stop", visible=False, elem_id=elem_id, scale=0, min_width=120)


def started(start: gr.Button, cancel: gr.Button, function: Callable, inputs: list, outputs, voids: list, **options):
    """What a button that starts long work does, and its `stop_button`.

    voids: of the inputs those that, when they change, leave what goes on without a meaning: it is stopped. All but the
    work itself is done in the page, at once: a request might come after the one that starts the next work.
    """
    private, hide = dict(api_visibility="private"), events.at_once(gr.update(visible=False))
    start.click(None, None, cancel, js=events.at_once(gr.update(visible=True)), **private)
    going = start.click(events.guarded(function, long=True), inputs, outputs, **private, **events.LONG, **options)
    for triggers in ([part.change for part in voids], [cancel.click]):
        gr.on(triggers, None, None, cancel, js=hide, cancels=going, trigger_mode="multiple", **private)
    for end in (going.then, going.failure):
        end(None, None, cancel, js=hide, **private)
