"""A backend in a process of its own, so that its memory and start-up are its own and no library's threads disturb it.

The process imports this module only: backends without torch must not pay for importing it.
"""

import os
import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from dlip.common.errors import UserError
from dlip.export import backends


class Worker:
    """The process of a backend, in which its methods are called.

    Converts the model into `folder` unless it is there (`Backend.prepare`), and captions the first of `images`.
    start_s: seconds from the start of the process to that caption.
    """

    def __init__(self, name: str, precision: str, threads: int, model: str, folder: Path, images: np.ndarray):
        context, self.name = get_context("spawn"), f"{name} in {precision}"
        start = time.perf_counter()
        self.connection, other = context.Pipe()
        job = (other, name, precision, threads, model, folder, images)
        self.process = context.Process(target=_serve, args=job, daemon=True)
        self.process.start()
        other.close()
        self._receive()
        self.start_s = time.perf_counter() - start

    def call(self, method: str, *arguments) -> tuple[float, object]:
        """Seconds and result of a method of `Backend`, without the transfer between processes."""
        with suppress(BrokenPipeError):  # `_receive` says that the process ended
            self.connection.send((method, arguments))
        return self._receive()

    def result(self, method: str, *arguments):
        return self.call(method, *arguments)[1]

    def stop(self) -> None:
        self.connection.close()
        self.process.join()

    def _receive(self):
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise UserError(f"the process of {self.name} ended, maybe for lack of memory; free some") from None
        if isinstance(answer, UserError):
            raise answer
        return answer


def _serve(
    connection: Connection, name: str, precision: str, threads: int, model: str, folder: Path, images: np.ndarray
) -> None:
    """Answers each request, a method and its arguments, with seconds and result, until the connection is closed."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # those of transformers too
    try:
        backend = backends.make(name, precision, threads).prepare(model, folder, images)
        backend.caption(images[:1])
    except Exception as error:  # a library raises nearly anything
        return connection.send(_mistake(error))
    connection.send(None)
    with suppress(EOFError):
        while True:
            method, arguments = connection.recv()
            start = time.perf_counter()
            try:
                result = backend.result(method, *arguments)
            except Exception as error:
                connection.send(_mistake(error))
            else:
                connection.send((time.perf_counter() - start, result))


def _mistake(error: Exception) -> UserError:
    return error if isinstance(error, UserError) else UserError(f"{type(error).__name__}: {error}")
