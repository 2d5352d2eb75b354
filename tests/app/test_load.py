"""Thirty visitors for a minute: every answer is right and arrives, and memory stays where it was."""

import threading
import time
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from PIL import Image

from app.tabs import compare
from dlip.cost.memory import resident_mb
from dlip.data.scenes.dataset import Scenes
from tests.helpers import running_app

VISITORS, SECONDS, KINDS = 30, 60, 6
STUDENTS = ("scenes/student", "scenes/student-undistilled")


@pytest.mark.load
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_thirty_visitors_for_a_minute(tmp_path):
    kinds = []
    for i in range(KINDS):
        path, student = str(tmp_path / f"{i}.png"), STUDENTS[i % 2]
        Image.fromarray(Scenes("test")[i].image).save(path)
        kinds.append((path, student, compare.captions(path, "scenes/teacher", student)))
    served, wrong = [], []

    def visit(number: int, address: str, end: float):
        path, student, wanted = kinds[number % KINDS]
        try:
            client = Client(address, verbose=False, httpx_kwargs={"timeout": 120})  # a busy machine serves all, late
            while time.time() < end:
                start = time.time()
                said = client.predict(
                    handle_file(path), "scenes/teacher", student, "beam", 3, 0.9, 30, 0, api_name="/captions"
                )
                served.append(time.time() - start)
                if any(said[side]["text"] != wanted[side]["text"] for side in ("teacher", "student")):
                    wrong.append((number, said))
        except Exception as error:
            wrong.append((number, error))

    with running_app() as (address, app):
        visit(0, address, time.time() + 5)
        before, end = resident_mb(app.pid), time.time() + SECONDS
        visitors = [threading.Thread(target=visit, args=(i, address, end)) for i in range(VISITORS)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
        grown = resident_mb(app.pid) - before
    served.sort()
    print(
        f"{len(served)} answers, median {served[len(served) // 2]:.2f} s, slowest {served[-1]:.2f} s, {grown:+.0f} MB"
    )
    assert wrong == [] and len(served) > VISITORS
    assert grown < 150
