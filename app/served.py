"""Start the app in a process of its own, as a user does."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from dlip.common.errors import UserError


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(
    *arguments: str, port: int | None = None, stderr: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run `dlip app ARGUMENTS`; yield its address and its process, and interrupt it at the end.

    port: any free one by default. stderr: file for its standard error. Raises UserError if it does not start.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "dlip", "app", "--port", str(port), *arguments]
    # a background job of a shell ignores Ctrl-C, and its children inherit that
    accept_ctrl_c = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    with (
        open(stderr, "w") if stderr else nullcontext() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, **accept_ctrl_c) as app,
    ):
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
