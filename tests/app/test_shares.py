"""What an address may have at once: half of the queue's room, some open requests, no silent connections."""

import asyncio
import socket
import threading
from types import SimpleNamespace

import pytest
from gradio.http_server import Config, Server
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from app import shares
from tests.helpers import run_in_thread


class Line:
    """A queue with one line, of `max_size` who wait."""

    def __init__(self, max_size: int):
        self.max_size, self.waiting = max_size, []
        self.event_queue_per_concurrency_id = {"quick": SimpleNamespace(queue=self.waiting)}
        shares.fair(self)

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
    run_in_thread(visit())


def test_a_few_addresses_that_want_all_do_not_fill_the_queue():
    async def visit():
        for host in ("1.1.1.1", "2.2.2.2", "3.3.3.3"):
            assert [(await line.ask(host))[0] for _ in range(70)][-1] is False
        assert len(line.waiting) == 64 + 32 + 16
        assert all([(await line.ask(f"4.4.4.{i}"))[0] for i in range(16)])

    line = Line(128)
    run_in_thread(visit())


def test_who_asks_for_much_waits_behind_those_who_ask_for_little():
    async def visit():
        for body in ("a1", "a2", "a3", "b1", "c1", "b2"):
            await line.ask(body[0], body)
        assert [event.body for event in line.waiting] == ["a1", "b1", "c1", "a2", "b2", "a3"]
        line.waiting.pop(0)
        await line.ask("d", "d1")
        assert [event.body for event in line.waiting] == ["b1", "c1", "a2", "d1", "b2", "a3"]

    line = Line(64)
    run_in_thread(visit())


def test_an_address_has_a_number_of_requests_open_and_others_are_served_meanwhile(monkeypatch):
    monkeypatch.setattr(shares, "AT_ONCE", 2)
    done, said = asyncio.Event(), []

    async def stream(scope, receive, send):
        await send("begun")
        await done.wait()

    async def send(message):
        said.append(message if isinstance(message, str) else message.get("status", message.get("body")))

    async def visit():
        shared = shares.Shared(stream)
        asked = [asyncio.create_task(shared({"type": "http", "client": (host, 1)}, None, send)) for host in "aaab"]
        await asyncio.wait(asked, timeout=0.1)
        assert said == ["begun", "begun", 429, shares.MANY.encode(), "begun"]
        done.set()
        await asyncio.gather(*asked)
        assert not shared.open
        await shared({"type": "http", "client": ("a", 1)}, None, send)

    run_in_thread(visit())
    assert said[-1] == "begun"


async def slowly(request):
    async def parts():
        for part in ("slow", "ly"):
            yield part
            await asyncio.sleep(1)

    return StreamingResponse(parts())


@pytest.fixture
def served():
    """The port of a server that hangs up, which answers slowly."""
    server = Server(Config(Starlette(routes=[Route("/", slowly)]), port=0, log_level="error"))
    shares.hang_up(server)
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
    monkeypatch.setattr(shares, "HEAD_S", 0.3)
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
