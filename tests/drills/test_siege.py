"""deploy/nginx.conf in a real nginx, before a server that answers everything with 200."""

import json
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from drills.siege import FORM, behind_nginx, status

pytestmark = pytest.mark.skipif(
    not (shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")), reason="nginx is not installed"
)


class Echo(BaseHTTPRequestHandler):
    """Answers with the request's headers."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self):
        body = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # started by root, nginx's workers are another user
        with behind_nginx(Path(folder), server.server_port) as url:
            yield url
    server.shutdown()


@pytest.mark.parametrize(
    ("route", "megabytes", "expected"),
    [("upload", 23, 200), ("upload", 25, 413), ("queue/join", 3, 200), ("queue/join", 5, 413)],
)
def test_bodies_are_limited(address, route, megabytes, expected):
    assert status(address, route, bytes(megabytes << 20), 1, FORM) == expected


def test_one_address_is_limited_and_others_are_served(address):
    long_jobs = [status(address, "call/v2/speed", b"{}", 2) for _ in range(8)]
    assert long_jobs == [200] * 5 + [429] * 3
    assert status(address, "call/captions", b"{}", 2) == status(address, "call/v2/speed", b"{}", 3) == 200
    assert 429 in [status(address, "call/captions", b"{}", 4) for _ in range(400)]


@pytest.mark.parametrize("path", ["gradio_api/proxy=http://127.0.0.1:1/", "gradio_api/file=http://127.0.0.1:1/",
                                  "gradio_api/component_server", "monitoring"])  # fmt: skip
def test_unused_routes_are_closed(address, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(address + path)


def test_the_app_gets_the_visitors_address(address):
    request = urllib.request.Request(address, headers={"X-Forwarded-For": "10.0.0.9"})
    headers = json.load(urllib.request.urlopen(request))
    assert headers["X-Forwarded-For"] == "10.0.0.9" and headers["X-Forwarded-Proto"] == "http"
