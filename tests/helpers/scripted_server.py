"""A server with OpenAI's protocol for a process of its own, so that it can be killed, stopped and started again.

    python scripted_server.py PORT LOG [--delay SECONDS] [--model NAME] [--manner MANNER]

MANNER is good, garbage, busy, other, abort or mute. There is no model: text is answered by `answer_to`. Each request
leaves a line in LOG when it arrives and another when it has been answered. `garbage` answers with half a JSON object,
`busy` with status 503, `other` is a server of something else, which has no model at all, `abort` breaks its first
answer off as vLLM does when it is ended, `mute` says nothing to anything. Port 0 takes a free one; the port is
printed.
"""

import argparse
import json
import sys
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any


def answer_to(prompt: str) -> str:
    return f"the answer to {prompt!r} is {zlib.crc32(prompt.encode())}"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    lock = Lock()
    settings: argparse.Namespace
    breaks_off = True

    def note(self, event: str, prompt: str) -> None:
        with self.lock, self.settings.log.open("a") as file:
            file.write(json.dumps([event, prompt]) + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def reply(self, data: bytes, status: int = 200, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        settings = self.server.settings
        if settings.manner == "other":
            return self.reply(b"<html>welcome to the shop</html>", kind="text/html")
        if settings.manner == "busy":
            return self.reply(b'{"error": {"message": "warming up"}}', 503)
        if settings.manner == "mute":
            time.sleep(3600)
        model = {"id": settings.model, "object": "model", "created": 0, "owned_by": "tests"}
        self.reply(json.dumps({"object": "list", "data": [model]}).encode())

    def do_POST(self) -> None:
        settings = self.server.settings
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["prompt"]
        self.server.note("arrived", prompt)
        time.sleep(settings.delay)
        if settings.manner == "other":
            return self.reply(b"<html>we sell no completions</html>", 405, "text/html")
        if settings.manner == "garbage":
            return self.reply(b'{"choices": [{"text": "the ans')
        if settings.manner == "busy":
            return self.reply(b'{"error": {"message": "warming up"}}', 503)
        if body["model"] != settings.model:
            return self.reply(b'{"error": {"message": "no such model"}}', 404)
        if settings.manner == "mute":
            time.sleep(3600)
        broken_off, self.server.breaks_off = settings.manner == "abort" and self.server.breaks_off, False
        choice = {"index": 0, "finish_reason": "stop", "text": answer_to(prompt), "logprobs": None}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {"id": "1", "object": "text_completion", "created": 0, "model": settings.model}
        if broken_off:
            choice |= {"finish_reason": "abort", "text": "the answ"}
        # Noted before it is sent: a process killed between the two must not have answered without a note of it.
        self.server.note("answered", prompt)
        self.reply(json.dumps({**answer, "choices": [choice], "usage": usage}).encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("log", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--manner", default="good", choices=["good", "garbage", "busy", "other", "abort", "mute"])
    Server.settings = parser.parse_args()
    server = Server(("127.0.0.1", Server.settings.port), Handler)
    print(server.server_port, flush=True)
    sys.stdout.close()
    server.serve_forever()


if __name__ == "__main__":
    main()
