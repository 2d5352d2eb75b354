"""The app as a user starts it, in a process of its own."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from dlip.common.errors import UserError


@contextmanager
def served(*words: str, errors: IO | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """Where the app listens, once it does, and its process; it is interrupted in the end, if it is still there.

    words: those behind `dlip app`. errors: where its standard error goes. Raises UserError where it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dlip.cli", "app", "--port", str(port), *words]
    # a background job of a shell ignores Ctrl-C, and so would the app
    heed = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, **heed) as app:
        try:
            if not app.stdout.readline().startswith(f"The app is at http://127.0.0.1:{port}/"):
                raise UserError("the app did not start; try `dlip app`")
            yield f"http://127.0.0.1:{port}/", app
        finally:
            app.send_signal(signal.SIGINT)
            try:
                app.wait(30)
            finally:
                app.kill()
