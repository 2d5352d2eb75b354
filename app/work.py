"""Long work: others get in between its steps, and its visitor can stop it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr

from app import guard, models
from dlip.errors import UserError

Progress = Callable[[float], object]
LIMIT_S = 300
"""Seconds that one visitor's work may take."""
_asked: dict[tuple[str, str], threading.Event] = {}
"""Session and kind of work -> what its visitor sets to stop it."""


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


@contextmanager
def stoppable(session: str, kind: str, progress: Progress) -> Iterator[Progress]:
    """Yields `progress` that ends that session's work of that kind, silently, as soon as `stop` was called for it."""
    asked = _asked[session, kind] = threading.Event()

    def step(share: float) -> None:
        if asked.is_set():
            raise gr.Error("Stopped, as you asked.", visible=False, print_exception=False)
        progress(share)

    try:
        yield step
    finally:
        if _asked.get((session, kind)) is asked:  # and not what was started anew meanwhile
            del _asked[session, kind]


def stop(session: str, kind: str) -> None:
    """Stops the session's work of that kind, if there is any."""
    if (session, kind) in _asked:
        _asked[session, kind].set()


def left(request: gr.Request) -> None:
    """Stops all work of a session whose page is closed, so that nobody waits for it."""
    for session, kind in list(_asked):
        if session == request.session_hash:
            stop(session, kind)


def stop_button(elem_id: str) -> gr.Button:
    """What stops long work; it is there only while that goes on."""
    return gr.Button("Stop", visible=False, elem_id=elem_id, scale=0, min_width=120)


def started(start: gr.Button, cancel: gr.Button, function: Callable, inputs: list, outputs, voids: list, **options):
    """What a button that starts long work does, and its `stop_button`. The function's name is its kind of work.

    voids: of the inputs those that, when they change, leave what goes on without a meaning: it is stopped.
    """
    private = dict(api_visibility="private", queue=False)

    def stopped(request: gr.Request) -> None:
        stop(request.session_hash, function.__name__)

    start.click(lambda: gr.Button(visible=True), None, cancel, **private)
    going = start.click(guard.guarded(function, long=True), inputs, outputs, api_visibility="private", **guard.LONG,
                        **options)  # fmt: skip
    void = gr.on([part.change for part in voids], stopped, cancels=going, **private, trigger_mode="multiple")
    for end in (going.then, going.failure, cancel.click(stopped, cancels=going, **private).then, void.then):
        end(lambda: gr.Button(visible=False), None, cancel, **private)
