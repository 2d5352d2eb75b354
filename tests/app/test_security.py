"""Limits of the app: large bodies, failures, files that were not uploaded, and names of other hosts."""

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app import security

KNOWN, UNKNOWN = "/known", "/gradio_api/call/unknown"


async def echo(request):
    return PlainTextResponse(f"{len(await request.body())} bytes")


async def fail(request):
    raise ZeroDivisionError("/secret\n\x1b[31m")


async def fail_later(request):
    async def parts():
        yield "begun"
        raise ZeroDivisionError

    return StreamingResponse(parts())


def client(local_only: bool = False, host: str = "http://127.0.0.1") -> TestClient:
    routes = [Route("/fail", fail), Route("/later", fail_later)]
    routes += [Route(path, lambda request: {}["x"]) for path in (KNOWN, UNKNOWN)]
    routes += [Route(path, echo, methods=["GET", "POST"]) for path in ("/", security.UPLOAD_PATH)]
    return TestClient(Starlette(routes=routes, middleware=security.middleware(local_only)), base_url=host)


@pytest.mark.parametrize(("path", "limit"), [("/", 4 << 20), (security.UPLOAD_PATH, 24 << 20)])
@pytest.mark.parametrize("declared", [True, False])
def test_bodies_above_the_limit_are_refused(path, limit, declared):
    for size, status in ((limit, 200), (limit + 1, 413)):
        body = b"x" * size if declared else (b"x" * min(1 << 20, size - i) for i in range(0, size, 1 << 20))
        assert client().post(path, content=body).status_code == status


def test_exceptions_are_json_and_one_line_in_the_log(caplog):
    assert client().get("/").text == "0 bytes" and not caplog.records
    answer = client().get("/fail")
    assert (answer.status_code, answer.json()) == (500, {"detail": security.FAILED})
    assert client().get("/later").text == "begun"
    assert [record.exc_info for record in caplog.records] == [None, None]
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert client().get(UNKNOWN).json() == {"detail": security.NO_ENDPOINT} and len(caplog.records) == 2
    assert client().get(KNOWN).json() == {"detail": security.FAILED}


@pytest.mark.parametrize(("host", "status"), [("localhost:7860", 200), ("127.0.0.1", 200), ("rebound.example", 400)])
def test_other_host_names_are_refused_while_any_model_can_be_named(host, status):
    assert client(True, f"http://{host}").get("/").status_code == status
    assert client(False, f"http://{host}").get("/").status_code == 200


def test_only_uploaded_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    image = gr.data_classes.ImageData
    assert security.uploaded_path(None) is security.uploaded_path(image(path=None)) is None
    assert security.uploaded_path(image(path=f"{tmp_path}/a/x.png")) == f"{tmp_path}/a/x.png"
    for path in ("/etc/passwd", f"{tmp_path}/../x.png", "x.png"):
        with pytest.raises(gr.Error, match="not uploaded here"):
            security.uploaded_path(image(path=path))


def test_public_addresses(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    for address, expected in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True), ("192.168.1.5", True)):
        monkeypatch.setenv("GRADIO_SERVER_NAME", address)
        assert security.is_public() is expected
    monkeypatch.delenv("GRADIO_SERVER_NAME")
    assert not security.is_public()
    monkeypatch.setenv("SPACE_ID", "somebody/dlip")
    assert security.is_public()
