"""What the gate lets through: files while there is room for them, and everything else meanwhile."""

import asyncio
import json
import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app import gate, room

FULL = "There is no room for more pictures now; try again in an hour."
ASKED = "/gradio_api/call/answers"
UNUSED = [
    "/gradio_api/process_recording", "/gradio_api/deep_link", "/gradio_api/component_server", "/gradio_api/vibe-code",
    "/gradio_api/proxy=http://1.1.1.1/", "/gradio_api/file=http://1.1.1.1/", "/monitoring", "/login",
]  # fmt: skip


async def echo(request):
    return PlainTextResponse(f"{len(await request.body())} bytes")


@pytest.fixture
def client(tmp_path, monkeypatch) -> TestClient:
    """Of an app behind the gate, which has room for a folder, two small files and 9 bytes; one is there."""
    monkeypatch.setattr(room, "STORED", 3 * room.LEAST + 9)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "of-a-visitor").mkdir()
    (tmp_path / "of-a-visitor" / "picture.png").write_bytes(b"x")
    ways = [Route(path, echo, methods=["GET", "POST"]) for path in (gate.UPLOAD, ASKED, *gate.ENDS, *UNUSED)]
    return TestClient(Starlette(routes=ways, middleware=gate.shut()))


@pytest.mark.parametrize(("more", "status"), [(1, 200), (2, 507)])
def test_files_are_refused_where_there_is_no_room(more, status, client, tmp_path):
    for i in range(more):
        (tmp_path / "of-a-visitor" / f"{i}.png").touch()
    answer = client.post(gate.UPLOAD, content=b"a picture")
    assert answer.status_code == status
    assert answer.text == ("9 bytes" if status == 200 else FULL)
    assert client.post(ASKED, content=b"a question").text == "10 bytes"


def test_a_file_for_which_the_room_does_not_last_is_refused_while_it_comes(client):
    sent = (b"x" * room.LEAST for _ in range(100))
    answer = client.post(gate.UPLOAD, content=sent)
    assert (answer.status_code, answer.text) == (507, FULL)


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_many_files_are_refused_however_they_come(piece, client, monkeypatch):
    monkeypatch.setattr(room, "STORED", 1 << 30)
    for files, status in ((gate.FILES, 200), (gate.FILES + 1, 413)):
        sent = b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" * files
        answer = client.post(gate.UPLOAD, content=(sent[i : i + piece] for i in range(0, len(sent), piece)))
        assert answer.status_code == status
    assert answer.text == "The request brings more than 8 files; send fewer."


@pytest.mark.parametrize("way", UNUSED)
def test_ways_that_the_page_does_not_use_are_closed(way, client):
    assert client.post(way, content=b"x").status_code == client.get(way).status_code == 404


class Line:
    """A queue with one line, of `max_size` who wait."""

    def __init__(self, max_size: int):
        self.max_size, self.waiting = max_size, []
        self.event_queue_per_concurrency_id = {"quick": SimpleNamespace(queue=self.waiting)}
        gate.fair(self)

    async def push(self, body, request, username):
        self.waiting.append(SimpleNamespace(body=body, request=request))
        return True, body, "success"

    def ask(self, host: str, body: str = "asked"):
        return self.push(body, SimpleNamespace(client=SimpleNamespace(host=host)), None)


def test_half_of_the_room_in_the_queue_is_left_to_others():
    async def visit():
        assert [(await line.ask("1.1.1.1"))[2] for _ in range(4)] == ["success", "success", "queue_full", "queue_full"]
        assert (await line.ask("1.1.1.1"))[1].startswith("2 of your address's requests wait already")
        assert await line.ask("2.2.2.2") == (True, "asked", "success")
        line.waiting[:] = [event for event in line.waiting if event.request.client.host != "1.1.1.1"]
        assert await line.ask("1.1.1.1") == (True, "asked", "success")

    line = Line(4)
    alone(visit())


def test_a_few_addresses_that_want_all_do_not_fill_the_queue():
    async def visit():
        for host in ("1.1.1.1", "2.2.2.2", "3.3.3.3"):
            assert [(await line.ask(host))[0] for _ in range(70)][-1] is False
        assert len(line.waiting) == 64 + 32 + 16
        assert all([(await line.ask(f"4.4.4.{i}"))[0] for i in range(16)])

    line = Line(128)
    alone(visit())


def test_who_asks_for_much_waits_behind_those_who_ask_for_little():
    async def visit():
        for body in ("a1", "a2", "a3", "b1", "c1", "b2"):
            await line.ask(body[0], body)
        assert [event.body for event in line.waiting] == ["a1", "b1", "c1", "a2", "b2", "a3"]
        line.waiting.pop(0)
        await line.ask("d", "d1")
        assert [event.body for event in line.waiting] == ["b1", "c1", "a2", "d1", "b2", "a3"]

    line = Line(64)
    alone(visit())


def work(session: str, number: int) -> SimpleNamespace:
    return SimpleNamespace(session_hash=session, fn=SimpleNamespace(_id=number), alive=True)


def test_work_to_be_cancelled_gets_the_name_that_its_page_does_not_know_yet(monkeypatch):
    """Also when it comes after the request to cancel it, and not that of what was started since."""

    async def visit():
        async def named(**asked):
            return json.loads(await gate.name(queue, json.dumps(asked).encode()))["event_id"]

        assert await named(event_id=None, session_hash="mine", fn_index=3) == "wanted"
        assert await named(event_id=None, session_hash="mine", fn_index=3) == "since"
        assert await named(event_id="other", session_hash="mine", fn_index=3) == "other"
        assert await named(event_id=None) == ""  # a reset
        late = asyncio.create_task(named(event_id=None, session_hash="mine", fn_index=5))
        await asyncio.sleep(0.05)
        events["late"] = work("mine", 5)
        assert await late == "late"
        monkeypatch.setattr(gate, "WAY_S", 0.05)
        assert await named(event_id=None, session_hash="theirs", fn_index=3) == ""

    events = {"before": work("mine", 4), "wanted": work("mine", 3), "since": work("mine", 3)}
    events["of others"] = work("others", 3)
    queue = SimpleNamespace(event_ids_to_events=events)
    alone(visit())
    assert [name for name, event in events.items() if event.alive] == ["before", "of others"]


def test_work_that_is_cancelled_ends_and_no_other_of_its_kind():
    async def visit():
        asked = dict(event_id="old", session_hash="mine", fn_index=3)
        body = await gate.name(SimpleNamespace(event_ids_to_events=events), json.dumps(asked).encode())
        assert json.loads(body) == asked | {"fn_index": -1}  # gradio ends what is of the kind

    events = {"old": work("mine", 3), "new": work("mine", 3)}
    alone(visit())
    assert not events["old"].alive and events["new"].alive


@pytest.mark.parametrize("way", gate.ENDS)
def test_a_request_to_cancel_without_end_is_refused(way, client):
    answer = client.post(way, content=(b"x" * (1 << 20) for _ in range(10)))
    assert (answer.status_code, answer.text) == (413, "The request is longer than 4,194,304 bytes; send less.")


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"[]", b"7", b"null", b'"event_id"', b"{}", b"\xff"])
def test_what_is_no_request_to_cancel_is_left_as_it_is(body):
    async def visit():
        assert await gate.name(SimpleNamespace(event_ids_to_events={}), body) == body

    alone(visit())


def alone(asked) -> None:
    """In a thread of its own, as this one may have a loop that runs."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, asked).result()


def test_who_says_nothing_more_is_not_waited_for(monkeypatch):
    """But who has said all may wait as long as an answer takes."""
    monkeypatch.setattr(gate, "PATIENCE_S", 0.05)
    parts = [{"type": "http.request", "body": b"half", "more_body": True}]

    async def receive():
        if not parts:
            await asyncio.sleep(60)
        return parts.pop(0)

    async def reader(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send("read")
        await asyncio.wait_for(receive(), 0.2)

    said = []

    async def send(message):
        said.append(message)

    asked = gate.Bounded(reader)({"type": "http", "path": "/call"}, receive, send)
    with pytest.raises(HTTPException, match="Nothing more came for 0.05 seconds"):
        alone(asked)
    assert said == []
    parts[:] = [{"type": "http.request", "body": b"all", "more_body": False}]
    with pytest.raises(TimeoutError):  # of the reader itself
        alone(gate.Bounded(reader)({"type": "http", "path": "/call"}, receive, send))
    assert said == ["read"]


async def slowly(request):
    async def parts():
        for part in ("slow", "ly"):
            yield part
            await asyncio.sleep(1)

    return StreamingResponse(parts())


@pytest.fixture
def served():
    """The port of a server that hangs up, which answers slowly."""
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=[Route("/", slowly)]), port=0, log_level="error"))
    gate.hang_up(server)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_who_does_not_ask_is_hung_up_on(said, served, monkeypatch):
    """However many letters of a head are sent meanwhile, but not before an answer has come to its end."""
    monkeypatch.setattr(gate, "PATIENCE_S", 0.3)
    whole = said.endswith(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", served), timeout=10) as line:
        line.sendall(said)
        come = b""
        while whole and b"ly\r\n0" not in come:
            come += line.recv(1000)
        letters, hung_up = iter(b"GET / HTTP/1.1\r\nX: " + 1000 * b"x"), False
        line.settimeout(0.05)
        while not hung_up:
            try:
                line.sendall(bytes([next(letters)]) * (said != b""))
                hung_up = line.recv(1000) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                hung_up = True


def test_a_file_that_breaks_off_is_no_fault_of_the_app(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    parts = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return parts.pop(0)

    async def reader(scope, receive, send):
        await receive()
        await receive()

    with pytest.raises(HTTPException, match="The file broke off"):
        alone(gate.Bounded(reader)({"type": "http", "path": gate.UPLOAD}, receive, None))


def test_as_many_may_be_connected_as_the_system_admits():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        gate.shut()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(gate.OPEN, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_address_has_a_number_of_requests_open_and_others_are_served_meanwhile(monkeypatch):
    monkeypatch.setattr(gate, "AT_ONCE", 2)
    done, said = asyncio.Event(), []

    async def stream(scope, receive, send):
        await send("begun")
        await done.wait()

    async def send(message):
        said.append(message if isinstance(message, str) else message.get("status", message.get("body")))

    async def visit():
        shared = gate.Shared(stream)
        asked = [asyncio.create_task(shared({"type": "http", "client": (host, 1)}, None, send)) for host in "aaab"]
        await asyncio.wait(asked, timeout=0.1)
        assert said == ["begun", "begun", 429, gate.MANY.encode(), "begun"]
        done.set()
        await asyncio.gather(*asked)
        assert not shared.open
        await shared({"type": "http", "client": ("a", 1)}, None, send)

    alone(visit())
    assert said[-1] == "begun"


async def breaks(request):
    raise ZeroDivisionError("/secret\n\x1b[31m")


async def breaks_off(request):
    async def parts():
        yield "what is wrong"
        raise ZeroDivisionError

    return StreamingResponse(parts())


def test_what_breaks_is_a_sentence_and_one_line_in_the_log(caplog):
    routes = [Route("/", breaks), Route("/off", breaks_off), Route("/well", echo)]
    client = TestClient(Starlette(routes=routes, middleware=[Middleware(gate.Told)]))
    assert client.get("/well").text == "0 bytes" and not caplog.records
    answer = client.get("/")
    assert (answer.status_code, answer.json()) == (500, {"detail": gate.FAILED})
    assert client.get("/off").text == "what is wrong"
    assert [record.exc_info for record in caplog.records] == [None, None]
    assert all(record.getMessage().isprintable() for record in caplog.records)
