"""A server with OpenAI's protocol for a process of its own, so that it can be killed.

    python structure_server.py PORT LOG DELAY

Port 0 takes a free one; the port is printed. Each request takes DELAY seconds, and leaves a line in LOG when it
arrives and another when it is answered. There is no model. A trace is decomposed into three steps; a student's follows
the teacher's for none to three of them, by the checksum of its text. A trace with the word UNREADABLE gets a reply
without a step. Two texts are judged the same if they end with the same digit.
"""

import json
import re
import sys
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

MODEL = "three-steps"
TEACHER = "The teacher says:"
UNREADABLE = "UNREADABLE"
STEPS = 3


def decomposed(prompt: str) -> str:
    if UNREADABLE in prompt:
        return "I would rather talk about the weather."
    teacher = TEACHER in prompt
    follows = STEPS if teacher else zlib.crc32(prompt.encode()) % (STEPS + 1)
    manner = "" if teacher else "again "
    steps = [(i if i <= follows else 9, i) for i in range(1, STEPS + 1)]
    return "".join(
        f"<step>\n<meta>Which is {manner}sub-problem {sub_problem}</meta>\n<question>solving {manner}equation {i}"
        f"</question>\n<answer>value {manner}{i}</answer>\n</step>\n"
        for sub_problem, i in steps
    )


def judged(prompt: str) -> str:
    first, second = re.findall(r"^(?:First|Second): .*(\d)$", prompt, flags=re.MULTILINE)
    return "Yes" if first == second else "No"


def answer(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body["messages"][-1]["content"]
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if body.get("logprobs"):
        text = judged(prompt)
        top = [{"token": text, "logprob": -0.1}, {"token": "No" if text == "Yes" else "Yes", "logprob": -2.4}]
        choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": top}]}
    else:
        text = decomposed(prompt)
    choice["message"] = {"role": "assistant", "content": text}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a burst of connections is not refused
    delay: float
    log: Path
    lock = Lock()

    def note(self, event: str, key: int) -> None:
        with self.lock, self.log.open("a") as file:
            file.write(json.dumps({"event": event, "request": key}) + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def reply(self, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "tests"}]})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        key = zlib.crc32(data)
        self.server.note("arrived", key)
        time.sleep(self.server.delay)
        self.reply(answer(json.loads(data)))
        self.server.note("answered", key)


if __name__ == "__main__":
    port, log, delay = sys.argv[1:]
    server = Server(("127.0.0.1", int(port)), Handler)
    server.delay, server.log = float(delay), Path(log)
    print(server.server_port, flush=True)
    server.serve_forever()
