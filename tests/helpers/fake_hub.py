"""A small hub on a free local port that takes a repository and its commits, and shows what it was sent.

It answers what `Trainer.push_to_hub` asks: who one is, a new repository, which files to upload (those that the sent
.gitignore names are left out, as on the real hub), and the commit. All files come as text in the commit.
"""

from __future__ import annotations

import base64
import json
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    def __init__(self, role: str = "write") -> None:
        self.role = role
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def shut_down(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        self.asked.append(f"{method} {path}")
        if path == "/api/whoami-v2":
            return 200, {"name": "you", "type": "user", "auth": {"accessToken": {"role": self.role}}}
        if path == "/api/repos/create":
            name = f"you/{json.loads(body)['name']}"
            return 200, {"url": f"{self.url}/{name}", "name": name, "id": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            asked = json.loads(body)
            patterns = asked.get("gitIgnore", "").splitlines()
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": ignores(patterns, file["path"])}
                for file in asked["files"]
            ]
            return 200, {"files": files, "commitOid": "0" * 40}
        if "/commit/" in path:
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    self.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            return 200, {"commitUrl": f"{self.url}/you/x/commit/1", "commitOid": "1" * 40, "hookOutput": ""}
        return 404, {"error": f"the fake hub does not know {path}"}


def ignores(patterns: list[str], path: str) -> bool:
    """As git reads simple patterns: a name, a name with stars, or a folder with a slash at its end."""
    parts = path.split("/")
    folders, names = [p[:-1] for p in patterns if p.endswith("/")], [p for p in patterns if not p.endswith("/")]
    return any(fnmatch(part, p) for part in parts[:-1] for p in folders) or any(
        fnmatch(part, p) for part in parts for p in names
    )


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def _answer(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = hub.answer(self.command, self.path.partition("?")[0], body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_HEAD = _answer

    return Handler
