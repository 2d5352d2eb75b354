"""Fifty visitors of the app behind nginx: answers stay right, bad requests are refused, memory is steady.

The app runs with a list of models, one of which cannot be loaded, behind nginx with `deploy/nginx.conf`. Each visitor
has an address of its own and makes random requests. Answers to good ones are compared with the models' own, bad ones
have to be refused, and some break off. One more visitor floods the API with long jobs, and one holds connections on
which it sends nothing. At the end the app is killed under load and started again.
"""

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.served import free_port, served
from app.tabs import compare, search
from dlip.checkpoints.load import BUILT_IN
from dlip.common.errors import UserError
from dlip.cost.memory import _status
from dlip.data.scenes.dataset import Scenes

TEACHER, STUDENTS = "scenes/teacher", ("scenes/student", "scenes/student-undistilled")
QUESTION, SENTENCE = "what color is the star?", "a red circle above a blue star"
NGINX_CONF = Path(__file__).parents[1] / "deploy" / "nginx.conf"
WARM_UP_S = 20
"""Seconds before memory is measured first."""
MAX_GROWTH_MB = 200
KINDS = "captions captions answers search bad bad forbidden closed large broken leave".split()
TIMEOUT_S = 240
"""Seconds that an answer may take while everybody waits."""
SILENT_CONNECTIONS, SILENT_S = 90, 30
"""Connections on which nothing is sent, and seconds after which nginx must have closed them."""
FORBIDDEN = (
    "gradio_api/file=/etc/passwd", "gradio_api/file=../../../etc/passwd", "file=/etc/passwd", "static/../../etc/passwd",
    "gradio_api/file=dlip/weights/scenes/student/model.safetensors", "gradio_api/file=http://127.0.0.1:1/",
    "gradio_api/proxy=http://127.0.0.1:1/", "theme.css/../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd",
)  # fmt: skip
CLOSED = ("process_recording", "component_server", "vibe-code", "undo-vibe-edit")
FORM = "multipart/form-data; boundary=b"
FILE_HEAD = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
Outcome = tuple[str, list[str]]
"""How a request came out, and faults."""


def run(times: int = 300, visitors: int = 50) -> tuple[dict, dict, list[str]]:
    """Settings, counts of outcomes, and faults. times: seconds."""
    counts, faults = Counter(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # started by root, nginx's workers are another user
        broken = folder / "broken"
        shutil.copytree(BUILT_IN / "scenes" / "student", broken)
        (broken / "model.safetensors").write_bytes(b"no weights")
        requests = Requests(folder, str(broken))
        port = free_port()
        arguments = ("--models", ",".join((TEACHER, *STUDENTS, str(broken))))
        with behind_nginx(folder, port) as address:
            with served(*arguments, port=port, stderr=folder / "first.log") as (_, app):
                end, silent = time.monotonic() + times, open_silent_connections(address)
                threads = [
                    threading.Thread(target=requests.visit, args=(number, address, end, counts, faults))
                    for number in range(visitors)
                ]
                threads.append(threading.Thread(target=requests.flood, args=(address, end, counts, faults)))
                for thread in threads:
                    thread.start()
                time.sleep(min(WARM_UP_S, times / 2))
                before = _status("VmRSS", app.pid) / 1e6
                for thread in threads:
                    thread.join()
                grown = _status("VmRSS", app.pid) / 1e6 - before
                counts["silent: closed"] = sum(map(was_closed, silent))
                if times > 2 * SILENT_S and counts["silent: closed"] < SILENT_CONNECTIONS:
                    faults.append("silent connections stay open")
                leaving = [threading.Thread(target=requests.leave, args=(address,)) for _ in range(5)]
                for thread in leaving:
                    thread.start()
                time.sleep(0.5)
                app.send_signal(signal.SIGKILL)
                for thread in leaving:
                    thread.join()
            began = time.monotonic()
            with served(*arguments, port=port, stderr=folder / "again.log"):
                back = time.monotonic() - began
                _, wrong = requests.one("captions", Client(address, verbose=False))
                faults += [f"after a kill: {fault}" for fault in wrong]
        logs = (folder / "first.log").read_text() + (folder / "again.log").read_text()
    faults += [f"the log has {line.strip()[:200]!r}" for line in re.findall("^Traceback.*(?:\n .*)*\n.*", logs, re.M)]
    if grown > MAX_GROWTH_MB:
        faults.append(f"memory grew by {grown:.0f} MB")
    measured = {"memory_mb": round(before), "grown_mb": round(grown), "back_after_kill_s": round(back, 1)}
    return {"seconds": times, "visitors": visitors}, dict(sorted(counts.items())) | measured, faults


@contextmanager
def behind_nginx(folder: Path, app_port: int) -> Iterator[str]:
    """Address of an nginx that serves the app with `deploy/nginx.conf`, with all its files in a folder.

    A visitor's address is taken from X-Forwarded-For, as all of them connect from this machine.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise UserError("nginx is not installed; install it, for example with apt-get install nginx")
    port, conf = free_port(), NGINX_CONF.read_text()
    conf = conf.replace("127.0.0.1:7860", f"127.0.0.1:{app_port}").replace("listen 80;", f"listen 127.0.0.1:{port};")
    conf = conf.replace("# set_real_ip_from 10.0.0.0/8;", "set_real_ip_from 127.0.0.1;")
    (folder / "dlip.conf").write_text(conf.replace("# real_ip_header", "real_ip_header"))
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"pid {folder}/nginx.pid;\nworker_processes 1;\nevents {{ worker_connections 1024; }}\n"
        f"http {{\naccess_log off;\n{temporary}include {folder}/dlip.conf;\n}}\n"
    )
    command = [program, "-c", folder / "nginx.conf", "-p", folder, "-e", folder / "nginx.log", "-g", "daemon off;"]
    with subprocess.Popen(command) as nginx:
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if nginx.poll() is not None:
                    raise UserError(f"nginx did not start: {(folder / 'nginx.log').read_text().strip()}")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/"
        finally:
            nginx.terminate()


class Requests:
    """Requests of visitors, and the answers that they must get."""

    def __init__(self, folder: Path, broken: str):
        self.broken, self.images, self.bad, self.expected = broken, [], [], {}
        for i in range(6):
            path = folder / f"{i}.png"
            Image.fromarray(Scenes("test")[i].image).save(path)
            self.images.append(str(path))
        for name, content in (("text.png", b"not an image"), ("cut.png", path.read_bytes()[:200]), ("none.jpg", b"")):
            (folder / name).write_bytes(content)
            self.bad.append(str(folder / name))
        for i, path in enumerate(self.images):
            student = STUDENTS[i % 2]
            self.expected[path] = {
                "captions": captions_of(compare.captions(path, TEACHER, student)),
                "answers": answers_of(compare.answers(path, TEACHER, student, QUESTION)),
            }
        self.places = places_of(search.search(TEACHER, STUDENTS[0], SENTENCE))

    def visit(self, number: int, address: str, end: float, counts: Counter, faults: list[str]) -> None:
        rng, client = random.Random(number), None
        while time.monotonic() < end:
            kind = rng.choice(KINDS)
            try:
                client = client or Client(
                    address, verbose=False, headers=headers_of(number), httpx_kwargs={"timeout": TIMEOUT_S}
                )
                outcome, wrong = self.one(kind, client, rng, number)
            except Exception as error:
                outcome, wrong, client = "wrong", [f"{kind}: {type(error).__name__}: {str(error)[:200]}"], None
            counts[f"{kind}: {outcome}"] += 1
            faults += wrong

    def one(self, kind: str, client: Client, rng: random.Random | None = None, number: int = 0) -> Outcome:
        """One request: "right", "refused", "left" or "wrong", and faults."""
        rng = rng or random.Random(0)
        i = rng.randrange(len(self.images))
        path, models = self.images[i], dict(teacher=TEACHER, student=STUDENTS[i % 2])
        if kind == "captions":
            result = client.predict(image=handle_file(path), **models, api_name="/captions")
            return compared(self.expected[path][kind], captions_of(result))
        if kind == "answers":
            result = client.predict(image=handle_file(path), **models, question=QUESTION, api_name="/answers")
            return compared(self.expected[path][kind], answers_of(result))
        if kind == "search":
            result = client.predict(teacher=TEACHER, student=STUDENTS[0], sentence=SENTENCE, api_name="/search")
            return compared(self.places, places_of(result))
        if kind == "forbidden":
            return forbidden(client.src, rng.choice(FORBIDDEN), number)
        if kind == "closed":
            return compared(404, status(client.src, rng.choice(CLOSED), b"{}", number))
        if kind == "large":
            return compared(
                413, status(client.src, "upload", FILE_HEAD + bytes(26 << 20) + b"\r\n--b--\r\n", number, FORM)
            )
        if kind == "broken":
            return break_off(client.src, number)
        if kind == "leave":
            return self.leave(client.src, number), []
        return refused(client, *self.invalid(rng, path, models))

    def invalid(self, rng: random.Random, path: str, models: dict) -> tuple[str, dict]:
        """An endpoint, and arguments that it must refuse."""
        long = {"image": handle_file(path), **models, "question": rng.choice(("x" * 100_000, "", " \0 "))}
        other = rng.choice(("/etc", "../../secret", "http://127.0.0.1:1/x", "someone/model", "", self.broken))
        outside = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
        return rng.choice((
            ("/captions", {"image": handle_file(rng.choice(self.bad)), **models}),
            ("/captions", {"image": handle_file(path), "teacher": TEACHER, "student": other}),
            ("/captions", {"image": outside, **models}),
            ("/captions", {"image": {"path": path}, **models}),  # on this machine, but not uploaded
            ("/captions", {"image": handle_file(path), **models, "beams": rng.choice((10**9, -1, "many"))}),
            ("/answers", long),
            ("/search", {**models, "sentence": "y" * 100_000}),
        ))  # fmt: skip

    def flood(self, address: str, end: float, counts: Counter, faults: list[str]) -> None:
        """Request long jobs without pause, from one address."""
        body = json.dumps(dict(teacher=TEACHER, student=STUDENTS[0], with_memory=False)).encode()
        while time.monotonic() < end:
            counts[f"flood: HTTP {status(address, 'call/v2/speed', body, 255)}"] += 1
            time.sleep(0.01)
        if not counts["flood: HTTP 429"]:
            faults.append("one address could request long jobs without limit")

    def leave(self, address: str, number: int = 0) -> str:
        """Request captions, and leave before the answer."""
        try:
            client = Client(address, verbose=False, headers=headers_of(number))
            models = dict(teacher=TEACHER, student=STUDENTS[0])
            job = client.submit(image=handle_file(self.images[0]), **models, api_name="/captions")
            time.sleep(0.05)
            job.cancel()
            client.close()
        except Exception:  # the app may be killed meanwhile
            return "gone"
        return "left"


def captions_of(result: dict) -> list[str]:
    return [result[side]["text"] for side in ("teacher", "student")]


def answers_of(result: dict) -> list[str]:
    return [result[side]["answers"][0][0] for side in ("teacher", "student")]


def places_of(result: dict) -> list[list[int]]:
    """Images that each model finds, in order."""
    return [[hit["place"] for hit in result[side]["hits"]] for side in ("teacher", "student")]


def compared(expected: object, got: object) -> Outcome:
    return ("right", []) if expected == got else ("wrong", [f"got {got} instead of {expected}"])


def refused(client: Client, endpoint: str, arguments: dict) -> Outcome:
    about = {key: str(value)[:60] for key, value in arguments.items()}
    try:
        answer = client.predict(**arguments, api_name=endpoint)
    except (AppError, ValueError) as error:  # the client itself refuses some
        message = str(error)
        if "Traceback" in message or "root:" in message or len(message) > 1000:
            return "wrong", [f"{endpoint} {about} was refused with {message[:300]!r}"]
        return "refused", []
    return "wrong", [f"{endpoint} {about} was answered with {str(answer)[:200]}"]


def forbidden(address: str, path: str, number: int) -> Outcome:
    """Request a path that must not be served."""
    code, body = request(f"{address.rstrip('/')}/{path}", number)
    leaks = b"root:" in body or body.startswith(b"\xb0") or b"__metadata__" in body
    return ("wrong", [f"{path}: HTTP {code} {body[:80]!r}"]) if code >= 500 or leaks else ("refused", [])


def headers_of(number: int) -> dict[str, str]:
    """Headers of a visitor with an address of its own."""
    return {"X-Forwarded-For": f"10.0.0.{number}"}


def request(url: str, number: int, body: bytes | None = None, content_type: str = "") -> tuple[int, bytes]:
    """Status and beginning of the answer to a visitor; status 413 also if the connection is closed while a body is
    sent."""
    headers = {"Content-Type": content_type, **headers_of(number)}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read(10_000)
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (ConnectionError, urllib.error.URLError):
        if body is None:
            raise
        return 413, b""


def status(address: str, route: str, body: bytes, number: int, content_type: str = "application/json") -> int:
    return request(f"{address}gradio_api/{route}", number, body, content_type)[0]


def connection(address: str) -> socket.socket:
    parts = urllib.parse.urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), TIMEOUT_S)


def open_silent_connections(address: str) -> list[socket.socket]:
    """Connections on which nothing is sent, or only the beginning of a request."""
    connections = [connection(address) for _ in range(SILENT_CONNECTIONS)]
    for one in connections[::2]:
        one.sendall(b"GET / HTTP/1.1\r\nHost: ")
    return connections


def was_closed(one: socket.socket) -> bool:
    """Whether the server has closed the connection, perhaps with an answer."""
    with one:
        one.setblocking(False)
        try:
            while one.recv(1000):
                pass
            return True
        except BlockingIOError:
            return False
        except ConnectionError:
            return True


def break_off(address: str, number: int) -> Outcome:
    """Upload half of a file, and hang up."""
    forwarded = headers_of(number)["X-Forwarded-For"]
    head = (f"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {forwarded}\r\n"
            f"Content-Type: {FORM}\r\nContent-Length: 9000000\r\n\r\n")  # fmt: skip
    with connection(address) as one:
        one.sendall(head.encode() + FILE_HEAD + b"x" * 200_000)
    return "left", []
