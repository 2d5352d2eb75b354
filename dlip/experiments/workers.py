"""Jobs done by processes of their own: one that fails, or that the machine kills, takes no other with it."""

import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
    """Does `function(job)` in spawned processes, each taking the next job; yields each as it ends, with why it failed.

    The processor's threads are shared out evenly, also where jobs are fewer, as a job's last digits depend on them;
    `watch` is called with the running jobs every second. What a process prints goes to `folder`/worker-<i>.log. The
    processes end with the caller's loop, however that ends, and with this process, even if it is killed.
    """
    waiting, team = deque(jobs), {}  # connection -> (process, job)
    threads = max(1, torch.get_num_threads() // workers)
    numbers = iter(range(len(jobs) + workers))

    def hire() -> None:
        if not waiting:
            return
        ours, theirs = context.Pipe()
        log = folder / f"worker-{next(numbers)}.log"
        process = context.Process(target=_serve, args=(function, theirs, threads, log), daemon=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in the process too, until it can take one
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        hand(ours, process)

    def hand(ours: connection.Connection, process) -> None:
        """The next job to a process; None ends it."""
        try:
            ours.send(waiting[0] if waiting else None)
        except ConnectionError:  # it died after its last job
            return hire()
        if waiting:
            team[ours] = process, waiting.popleft()

    context = get_context("spawn")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for _ in range(workers):
            hire()
        while team:
            for ours in connection.wait(list(team), TICK_S):
                process, job = team.pop(ours)
                try:
                    reason = ours.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    reason = f"its process ended with exit code {process.exitcode}"
                    hire()
                else:
                    hand(ours, process)
                yield job, reason
            watch([job for _, job in team.values()])
    finally:
        for process, _ in team.values():
            process.terminate()
        for process, _ in team.values():
            process.join()


def _serve(function: Callable[[J], None], boss: connection.Connection, threads: int, log: Path) -> None:
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the parent's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    while (job := boss.recv()) is not None:
        reason = None
        try:
            function(job)
        except UserError as mistake:
            reason = str(mistake)
        except Exception as fault:
            traceback.print_exc()
            reason = f"{type(fault).__name__}: {fault}"
        boss.send(reason)


def _end_with_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)
