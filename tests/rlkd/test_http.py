import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlkd.http import get_json, post_json

BODIES = {"/object": b'{"a": 1}', "/list": b"[1]", "/text": b"hello", "/missing": b'{"error": "unknown"}'}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(BODIES[self.path])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(json.dumps({"body": body.decode()}).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_response_gives_its_status_and_its_object(url) -> None:
    assert get_json(f"{url}/object") == (200, {"a": 1})
    assert get_json(f"{url}/list") == get_json(f"{url}/text") == (200, {})
    assert get_json(f"{url}/missing") == (404, {"error": "unknown"})


def test_content_is_sent_as_json(url) -> None:
    status, found = post_json(f"{url}/any", {"name": "x"})
    assert (status, json.loads(found["body"])) == (200, {"name": "x"})
    assert post_json(f"{url}/any") == (200, {"body": ""})


def test_without_a_response_the_error_names_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(OSError, match=rf"no response from http://127.0.0.1:{port}/health: .*refused"):
        get_json(f"http://127.0.0.1:{port}/health")
    with pytest.raises(OSError, match="no response from nonsense"):
        get_json("nonsense")


def test_a_server_of_another_protocol_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(OSError, match="does not speak HTTP"):
            get_json(f"http://127.0.0.1:{listening.getsockname()[1]}/")
