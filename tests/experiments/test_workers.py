"""Jobs in processes of their own: what fails or is killed takes no other with it, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlip.common.errors import UserError
from dlip.experiments.workers import work
from tests.helpers import ROOT


def act(job: tuple[str, Path]) -> None:
    what, folder = job
    if what == "mistake":
        raise UserError("choose better")
    if what == "fault":
        raise ValueError("broken")
    if what == "killed":
        os._exit(9)
    path = folder / what
    path.write_text(str(os.getpid()))
    if what == "long":
        time.sleep(600)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(condition, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_each_job_is_done_once_and_failures_say_why(tmp_path):
    whats = ["a", "mistake", "killed", "b", "fault", "c"]
    watched = []
    ended = list(work(act, [(what, tmp_path) for what in whats], 2, tmp_path / "logs", watched.append))
    assert sorted(job[0] for job, _ in ended) == sorted(whats)
    reasons = {job[0]: reason for job, reason in ended}
    assert reasons == {
        "a": None, "b": None, "c": None, "mistake": "choose better", "fault": "ValueError: broken",
        "killed": "its process ended with exit code 9",
    }  # fmt: skip
    assert all((tmp_path / what).exists() for what in "abc")
    assert all(len(running) <= 2 for running in watched) and watched[-1] == []
    logs = "".join(path.read_text() for path in (tmp_path / "logs").glob("worker-*.log"))
    assert 'raise ValueError("broken")' in logs


def test_the_processes_end_with_the_loop(tmp_path):
    for job, reason in work(act, [("a", tmp_path), ("long", tmp_path)], 2, tmp_path, lambda running: None):
        assert job[0] == "a" and reason is None
        pid = int(wait_for(lambda: (tmp_path / "long").exists() and (tmp_path / "long").read_text()))
        assert alive(pid)
        break
    wait_for(lambda: not alive(pid))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_processes_end_with_their_parent(tmp_path, how):
    code = f"""if True:
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin by ignoring it
        from pathlib import Path
        from tests.experiments.test_workers import act, work
        list(work(act, [("long", Path({str(tmp_path)!r}))], 1, Path({str(tmp_path)!r}), lambda running: None))
    """
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True)
    pid = int(wait_for(lambda: (tmp_path / "long").exists() and (tmp_path / "long").read_text()))
    os.killpg(parent.pid, how) if how == signal.SIGINT else parent.kill()
    said = parent.communicate()[1].decode()
    wait_for(lambda: not alive(pid))
    assert said.count("KeyboardInterrupt") == (how == signal.SIGINT)  # the parent's alone
