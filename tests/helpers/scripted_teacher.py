"""A served teacher without a model: it answers problems "What is A and B together" step by step, some of them wrongly.

What it answers depends on the whole request, seed included, and on nothing else. `requests` holds what arrived, in
order, as canonical JSON; `mark(body)` is a word that the answer to a request contains and no other answer does.
"""

from __future__ import annotations

import json
import re
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True)


def mark(body: str) -> str:
    return f"m{zlib.crc32(body.encode()):08x}"


def answer_to(body: dict[str, Any]) -> str:
    """Right in three cases of four; along a plan sometimes another path; now and then no JSON at all."""
    last = body["messages"][-1]["content"]
    first, second = map(int, re.search(r"What is (\d+) and (\d+)", last).groups())
    draw = zlib.crc32(canonical(body).encode())
    right = draw % 4 != 0 or "result is known" in last
    total = first + second + (0 if right else 1)
    sign = f"({mark(canonical(body))})"
    if "JSON" not in body["messages"][0]["content"]:
        return f"{first} + {second} = {total} {sign}\n#### {total}"
    if draw % 11 == 0:
        return f"I would say {total}. {sign}\n#### {total}"
    path = ["AddBothParts"] if draw % 3 else ["CountUpwards", "StateTotal"]
    texts = dict.fromkeys(path, f"{first} + {second} = {total} {sign}")
    route = {"category": "addition", "intents": ["what is together"], "difficulty": 1, "budget": 2, "path": path}
    return json.dumps({**route, "rationale": texts, "answer": str(total)})


class ScriptedTeacher:
    """The server, running in a thread. `fault` may give a status for a request instead of an answer."""

    def __init__(self, delay: float = 0.0, answer: Callable[[dict[str, Any]], str] = answer_to) -> None:
        self.delay = delay
        self.answer = answer
        self.fault: Callable[[dict[str, Any]], int | None] = lambda body: None
        self.requests: list[str] = []
        self.answered = 0
        self.lock = threading.Lock()
        self.http = _Quiet(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def spec(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1#scripted"

    def shut_down(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error here."""


def _handler(server: ScriptedTeacher) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *args: Any) -> None:
            pass

        def reply(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client was killed
                self.close_connection = True

        def do_GET(self) -> None:
            model = {"id": "scripted", "object": "model", "created": 0, "owned_by": "tests"}
            self.reply(200, {"object": "list", "data": [model]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with server.lock:
                server.requests.append(canonical(body))
            time.sleep(server.delay)
            if (status := server.fault(body)) is not None:
                return self.reply(status, {"error": {"message": "out of order"}})
            text = server.answer(body)
            with server.lock:
                server.answered += 1
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
            usage = {"prompt_tokens": 9, "completion_tokens": len(text.split()), "total_tokens": 9}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "scripted"}
            self.reply(200, {**answer, "choices": [choice], "usage": usage})

    return Handler
