"""What the gate lets through: files while there is room for them, and everything else meanwhile."""

import asyncio
import resource

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app import gate, room
from app.cancel import ENDS
from tests.helpers import run_in_thread

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
    ways = [Route(path, echo, methods=["GET", "POST"]) for path in (gate.UPLOAD, ASKED, *ENDS, *UNUSED)]
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


@pytest.mark.parametrize("way", ENDS)
def test_a_request_to_cancel_without_end_is_refused(way, client):
    answer = client.post(way, content=(b"x" * (1 << 20) for _ in range(10)))
    assert (answer.status_code, answer.text) == (413, "The request is longer than 4,194,304 bytes; send less.")


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
        run_in_thread(asked)
    assert said == []
    parts[:] = [{"type": "http.request", "body": b"all", "more_body": False}]
    with pytest.raises(TimeoutError):  # of the reader itself
        run_in_thread(gate.Bounded(reader)({"type": "http", "path": "/call"}, receive, send))
    assert said == ["read"]


def test_a_file_that_breaks_off_is_no_fault_of_the_app(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    parts = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return parts.pop(0)

    async def reader(scope, receive, send):
        await receive()
        await receive()

    with pytest.raises(HTTPException, match="The file broke off"):
        run_in_thread(gate.Bounded(reader)({"type": "http", "path": gate.UPLOAD}, receive, None))


def test_as_many_may_be_connected_as_the_system_admits():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        gate.shut()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(gate.OPEN, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


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
