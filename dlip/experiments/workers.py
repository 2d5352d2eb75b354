"""A pool of worker processes: a job that fails, or that the machine kills, does not end the others."""

import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TypeVar

import torch

from dlip.common.errors import UserError

J = TypeVar("J")
TICK_S = 1.0


def work(
    function: Callable[[J], None], jobs: Sequence[J], workers: int, folder: Path, watch: Callable[[list[J]], None]
) -> Iterator[tuple[J, str | None]]:
    """Run `function(job)` in spawned processes, each taking the next job; yield each job as it ends, with its error.

    The processor's threads are divided evenly among `workers`, even where jobs are fewer, because a job's last digits
    depend on them. `watch` is called with the running jobs every second. Output of a process goes to
    `folder`/worker-<i>.log. The processes end with the caller's loop and with this process, even if it is killed.
    """
    waiting, running = deque(jobs), {}  # connection -> (process, job)
    threads = max(1, torch.get_num_threads() // workers)
    numbers = count()

    def start_worker() -> None:
        if not waiting:
            return
        parent_end, child_end = context.Pipe()
        log = folder / f"worker-{next(numbers)}.log"
        process = context.Process(target=_serve, args=(function, child_end, threads, log), daemon=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in the process too, until it can take one
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        child_end.close()
        send_next(parent_end, process)

    def send_next(parent_end: connection.Connection, process) -> None:
        """Send the next job to a process; None ends it."""
        try:
            parent_end.send(waiting[0] if waiting else None)
        except ConnectionError:  # it died after its last job
            return start_worker()
        if waiting:
            running[parent_end] = process, waiting.popleft()

    context = get_context("spawn")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for _ in range(workers):
            start_worker()
        while running:
            for parent_end in connection.wait(list(running), TICK_S):
                process, job = running.pop(parent_end)
                try:
                    reason = parent_end.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    reason = f"its process ended with exit code {process.exitcode}"
                    start_worker()
                else:
                    send_next(parent_end, process)
                yield job, reason
            watch([job for _, job in running.values()])
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _serve(function: Callable[[J], None], parent: connection.Connection, threads: int, log: Path) -> None:
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the parent's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    while (job := parent.recv()) is not None:
        reason = None
        try:
            function(job)
        except UserError as mistake:
            reason = str(mistake)
        except Exception as fault:
            traceback.print_exc()
            reason = f"{type(fault).__name__}: {fault}"
        parent.send(reason)


def _end_with_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)
