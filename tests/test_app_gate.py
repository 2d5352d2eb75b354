"""What the gate lets through: files while there is room for them, and everything else meanwhile."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app import gate

FULL = "There is no room for more pictures now; try again in an hour."


async def echo(request):
    return PlainTextResponse(f"{len(await request.body())} bytes")


@pytest.mark.parametrize(("there", "status"), [(9, 200), (11, 507)])
def test_files_are_refused_where_there_is_no_room(there, status, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "STORED", 10)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "of-a-visitor").mkdir()
    (tmp_path / "of-a-visitor" / "picture.png").write_bytes(b"x" * there)
    ways = [Route(path, echo, methods=["POST"]) for path in (gate.UPLOAD, "/call")]
    client = TestClient(Starlette(routes=ways, middleware=gate.shut()))
    answer = client.post(gate.UPLOAD, content=b"a picture")
    assert answer.status_code == status
    assert answer.text == ("9 bytes" if status == 200 else FULL)
    assert client.post("/call", content=b"a question").text == "10 bytes"
