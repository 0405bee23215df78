"""A server on a free local port whose answers a test decides."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LocalServer:
    """Answers by `answer`, which subclasses define."""

    def __init__(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.respond("GET")

            def do_POST(self) -> None:
                self.respond("POST")

            def respond(self, method: str) -> None:
                content = self.rfile.read(int(self.headers.get("content-length") or 0))
                answer = server.answer(method, self.path, content)
                if answer is None:
                    self.close_connection = True
                    return
                status, body = answer
                self.send_response(status)
                self.send_header("content-length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, method: str, path: str, content: bytes) -> tuple[int, str] | None:
        """Status and body of the answer to a request; None closes the connection without one."""
        return 404, f"{method} {path} of {len(content)} bytes"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
