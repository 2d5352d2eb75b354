"""Fifty visitors for five minutes, good and bad: right answers stay right, bad requests get a sentence, nothing leaks.

The app is started with a list of models, of which one cannot be loaded. Each visitor, with an address of its own, asks
at random for what it may have, for what it may not, brings many small files, or leaves in the middle; one asks for long
work without end, and one holds connections on which it says nothing. In the end the app is killed under load and
started again.
"""

import json
import random
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.gate import FILES
from app.served import served
from app.shares import HEAD_S
from app.tabs import compare, search
from dlip.checkpoints.load import BUILT_IN
from dlip.cost.memory import resident_mb
from dlip.data.scenes.dataset import Scenes

TEACHER, STUDENTS = "scenes/teacher", ("scenes/student", "scenes/student-undistilled")
QUESTION, SENTENCE = "what color is the star?", "a red circle above a blue star"
WARM_S = 20
"""After which memory is measured first."""
GROWTH_MB = 200
KINDS = "captions captions answers search bad bad forbidden closed small broken leave".split()
ANSWER_S = 240
"""That an answer may take with everybody waiting."""
HELD = 200
"""Connections on which nothing is said."""
FORBIDDEN = (
    "gradio_api/file=/etc/passwd", "gradio_api/file=../../../etc/passwd", "file=/etc/passwd", "static/../../etc/passwd",
    "gradio_api/file=dlip/weights/scenes/student/model.safetensors", "gradio_api/file=http://127.0.0.1:1/",
    "gradio_api/proxy=http://127.0.0.1:1/", "theme.css/../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd",
)  # fmt: skip
CLOSED = ("run/search", "api/search", "process_recording", "component_server", "vibe-code", "undo-vibe-edit")
FORM = "multipart/form-data; boundary=b"
SMALL = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\nx\r\n'


def run(times: int = 300, visitors: int = 50) -> tuple[dict, dict, list[str]]:
    """Settings, how many requests came out in which way, and what was wrong. times: seconds."""
    counts, faults = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        broken = place / "broken"
        shutil.copytree(BUILT_IN / "scenes" / "student", broken)
        (broken / "model.safetensors").write_bytes(b"no weights")
        models = ",".join((TEACHER, *STUDENTS, str(broken)))
        asked = Requests(place, str(broken))
        with open(place / "first.log", "w") as log, served("--models", models, errors=log) as (address, app):
            end, threads, held = time.monotonic() + times, [], hold(address)
            for number in range(visitors):
                visit = threading.Thread(target=asked.visit, args=(number, address, end, counts, faults))
                threads.append(visit)
                visit.start()
            threads.append(threading.Thread(target=asked.want_all, args=(address, end, counts, faults)))
            threads[-1].start()
            time.sleep(min(WARM_S, times / 2))
            before = resident_mb(app.pid)
            for visit in threads:
                visit.join()
            grown = resident_mb(app.pid) - before
            counts["held: hung up"] = sum(map(hung_up, held))
            faults += ["connections can be held"] * (times > 2 * HEAD_S and counts["held: hung up"] < HELD)
            leaving = [threading.Thread(target=asked.leave, args=(address,)) for _ in range(5)]
            for visit in leaving:
                visit.start()
            time.sleep(0.5)
            app.send_signal(signal.SIGKILL)
            for visit in leaving:
                visit.join()
        began = time.monotonic()
        with open(place / "again.log", "w") as log, served("--models", models, errors=log) as (address, _):
            back = time.monotonic() - began
            faults += [f"after a kill: {fault}" for fault in asked.one("captions", Client(address, verbose=False))[1]]
        logs = (place / "first.log").read_text() + (place / "again.log").read_text()
    faults += [f"the log has {line.strip()[:200]!r}" for line in re.findall("^Traceback.*(?:\n .*)*\n.*", logs, re.M)]
    faults += [f"memory grew by {grown:.0f} MB"] * (grown > GROWTH_MB)
    about = {"memory_mb": round(before), "grown_mb": round(grown), "back_after_kill_s": round(back, 1)}
    return {"seconds": times, "visitors": visitors}, dict(sorted(counts.items())) | about, faults


class Requests:
    """What visitors ask for, and what they have to get."""

    def __init__(self, place: Path, broken: str):
        self.broken, self.pictures, self.bad, self.wanted = broken, [], [], {}
        for i in range(6):
            path = place / f"{i}.png"
            Image.fromarray(Scenes("test")[i].image).save(path)
            self.pictures.append(str(path))
        for name, content in (("text.png", b"no picture"), ("cut.png", path.read_bytes()[:200]), ("none.jpg", b"")):
            (place / name).write_bytes(content)
            self.bad.append(str(place / name))
        for i, path in enumerate(self.pictures):
            student = STUDENTS[i % 2]
            said = compare.captions(path, TEACHER, student)
            told = compare.answers(path, TEACHER, student, QUESTION)
            self.wanted[path] = {
                "captions": [said[side]["text"] for side in ("teacher", "student")],
                "answers": [told[side]["answers"][0][0] for side in ("teacher", "student")],
            }
        self.found = search.search(TEACHER, STUDENTS[0], SENTENCE)

    def visit(self, number: int, address: str, end: float, counts: Counter, faults: list[str]) -> None:
        rng, client = random.Random(number), None
        while time.monotonic() < end:
            kind = rng.choice(KINDS)
            try:
                client = client or Client(
                    address, verbose=False, headers=sender(number), httpx_kwargs={"timeout": ANSWER_S}
                )
                outcome, wrong = self.one(kind, client, rng) if kind != "leave" else (self.leave(address), [])
            except Exception as error:
                outcome, wrong, client = "wrong", [f"{kind}: {type(error).__name__}: {str(error)[:200]}"], None
            counts[f"{kind}: {outcome}"] += 1
            faults += wrong

    def one(self, kind: str, client: Client, rng: random.Random | None = None) -> tuple[str, list[str]]:
        """One request: "right", "refused" or "wrong", and what was."""
        rng = rng or random.Random(0)
        i = rng.randrange(len(self.pictures))
        path, models = self.pictures[i], dict(teacher=TEACHER, student=STUDENTS[i % 2])
        if kind == "captions":
            said = client.predict(picture=handle_file(path), **models, api_name="/captions")
            return right(self.wanted[path][kind], [said[side]["text"] for side in ("teacher", "student")])
        if kind == "answers":
            told = client.predict(picture=handle_file(path), **models, question=QUESTION, api_name="/answers")
            return right(self.wanted[path][kind], [told[side]["answers"][0][0] for side in ("teacher", "student")])
        if kind == "search":
            found = client.predict(teacher=TEACHER, student=STUDENTS[0], sentence=SENTENCE, api_name="/search")
            return right(ranked(self.found), ranked(found))
        if kind == "forbidden":
            return forbidden(client.src, rng.choice(FORBIDDEN))
        if kind == "closed":
            wanted = json.dumps({"data": [TEACHER, STUDENTS[0], SENTENCE]})
            return answered(404, client.src, rng.choice(CLOSED), wanted.encode())
        if kind == "small":
            files, wanted = rng.choice(((FILES, 200), (200, 413)))
            return answered(wanted, client.src, "upload", files * SMALL + b"--b--\r\n", FORM)
        if kind == "broken":
            return break_off(client.src)
        return refused(client, *self.evil(rng, path, models))

    def evil(self, rng: random.Random, path: str, models: dict) -> tuple[str, dict]:
        """An endpoint, and what it must refuse."""
        long = {"picture": handle_file(path), **models, "question": rng.choice(("x" * 100_000, "", " \0 "))}
        other = rng.choice(("/etc", "../../secret", "http://127.0.0.1:1/x", "someone/model", "", self.broken))
        outside = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
        return rng.choice((
            ("/captions", {"picture": handle_file(rng.choice(self.bad)), **models}),
            ("/captions", {"picture": handle_file(path), "teacher": TEACHER, "student": other}),
            ("/captions", {"picture": outside, **models}),
            ("/captions", {"picture": {"path": path}, **models}),  # of the disk, and none that was brought
            ("/captions", {"picture": handle_file(path), **models, "beams": rng.choice((10**9, -1, "many"))}),
            ("/answers", long),
            ("/search", {**models, "sentence": "y" * 100_000}),
        ))  # fmt: skip

    def want_all(self, address: str, end: float, counts: Counter, faults: list[str]) -> None:
        """Asks for long work until there is no place left in the queue for this one visitor."""
        wanted = json.dumps(dict(teacher=TEACHER, student=STUDENTS[0], with_memory=False)).encode()
        while time.monotonic() < end:
            counts[f"want all: HTTP {status(address, 'call/v2/speed', wanted)}"] += 1
        faults += ["one visitor could ask for more and more"] * (not counts["want all: HTTP 503"])

    def leave(self, address: str) -> str:
        """Asks, and is gone before the answer."""
        try:
            client = Client(address, verbose=False)
            models = dict(teacher=TEACHER, student=STUDENTS[0])
            job = client.submit(picture=handle_file(self.pictures[0]), **models, api_name="/captions")
            time.sleep(0.05)
            job.cancel()
            client.close()
        except Exception:  # the app may be killed under it
            return "gone"
        return "left"


def ranked(found: dict) -> list[list[int]]:
    """The pictures that both models found, in order."""
    return [[hit["place"] for hit in found[side]["hits"]] for side in ("teacher", "student")]


def right(wanted: list, got: list) -> tuple[str, list[str]]:
    return ("right", []) if wanted == got else ("wrong", [f"{got} for {wanted}"])


def refused(client: Client, endpoint: str, request: dict) -> tuple[str, list[str]]:
    about = {key: str(value)[:60] for key, value in request.items()}
    try:
        said = client.predict(**request, api_name=endpoint)
    except (AppError, ValueError) as refusal:  # the client itself refuses some
        sentence = str(refusal)
        if "Traceback" in sentence or "root:" in sentence or len(sentence) > 1000:
            return "wrong", [f"{endpoint} {about} was refused with {sentence[:300]!r}"]
        return "refused", []
    return "wrong", [f"{endpoint} {about} was answered with {str(said)[:200]}"]


def forbidden(address: str, path: str) -> tuple[str, list[str]]:
    """A path that the app must not serve."""
    try:
        with urllib.request.urlopen(address.rstrip("/") + "/" + path, timeout=ANSWER_S) as answer:
            body = answer.read(10_000)
    except urllib.error.HTTPError as error:
        return ("refused", []) if error.code < 500 else ("wrong", [f"{path}: HTTP {error.code}"])
    leaks = b"root:" in body or body.startswith(b"\xb0") or b"__metadata__" in body
    return ("wrong", [f"{path} was served: {body[:80]!r}"]) if leaks else ("refused", [])  # with the page itself


def sender(number: int) -> dict[str, str]:
    """Headers of a visitor whose address is its own, as a proxy on the app's machine sends them."""
    return {"X-Forwarded-For": f"10.0.0.{number}"}


def status(address: str, way: str, body: bytes, form: str = "application/json") -> int:
    """What one more visitor who sends the body is answered with."""
    asked = urllib.request.Request(f"{address}gradio_api/{way}", body, {"Content-Type": form, **sender(255)})
    try:
        with urllib.request.urlopen(asked, timeout=ANSWER_S) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def answered(wanted: int, address: str, way: str, *sent) -> tuple[str, list[str]]:
    got = status(address, way, *sent)
    return ("right", []) if got == wanted else ("wrong", [f"{way}: HTTP {got} for {wanted}"])


def connection(address: str) -> socket.socket:
    where = urllib.parse.urlsplit(address)
    return socket.create_connection((where.hostname, where.port), ANSWER_S)


def hold(address: str) -> list[socket.socket]:
    """Connections, on some of which a request is begun."""
    held = [connection(address) for _ in range(HELD)]
    for line in held[::2]:
        line.sendall(b"GET / HTTP/1.1\r\nHost: ")
    return held


def hung_up(line: socket.socket) -> bool:
    """Whether the other side did; this one does now."""
    with line:
        line.setblocking(False)
        try:
            return line.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True


def break_off(address: str) -> tuple[str, list[str]]:
    """Brings half of a file, and is gone."""
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: 9000000\r\n\r\n"
    with connection(address) as line:
        line.sendall(head.encode() + SMALL + b"x" * 200_000)
    return "left", []
