"""A server with prompt log-probabilities in the layout of vLLM: real HTTP and a real model."""

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


class TopKServer:
    """Answers as `vllm serve` does. `fault` maps a request to (status, answer), or None; `requests` holds bodies."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_logprobs, self.owner, self.logits = 20, "vllm", False
        self.requests: list[dict[str, Any]] = []
        self.most = self.now = 0
        self.lock = threading.Lock()
        self.fault: Callable[[dict[str, Any]], tuple[int, dict[str, Any]] | None] = lambda body: None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["model"] != "tiny":
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if path == "/tokenize":
            return 200, {"tokens": self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        with self.lock:
            self.requests.append(body)
        if fault := self.fault(body):
            return fault
        k, ids = body["prompt_logprobs"], body["prompt"]
        if k > self.max_logprobs:
            message = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.max_logprobs}"
            return 400, {"error": {"message": message, "type": "BadRequestError"}}
        with torch.no_grad(), self.lock:
            table = self.model(torch.tensor([ids])).logits[0]
        table = table if self.logits else table.log_softmax(-1)
        entries: list[Any] = [None]
        for row, token in zip(table[:-1], ids[1:], strict=True):
            # The token that stands there comes first, the others behind it, as vLLM has it.
            listed = [token, *(int(i) for i in row.topk(k).indices if int(i) != token)]
            entries.append({str(i): {"logprob": float(row[i]), "rank": 1, "decoded_token": "x"} for i in listed})
        choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None, "prompt_logprobs": entries}
        return 200, {"id": "1", "object": "text_completion", "created": 0, "model": "tiny", "choices": [choice]}

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def reply(self, status: int, answer: dict[str, Any]) -> None:
                data = json.dumps(answer).encode()
                with contextlib.suppress(OSError):  # the client hung up
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def do_GET(self) -> None:
                listed = [{"id": "tiny", "object": "model", "created": 0, "owned_by": server.owner}]
                self.reply(200, {"object": "list", "data": listed})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    server.now += 1
                    server.most = max(server.most, server.now)
                try:
                    answer = server.answer(self.path, body)
                finally:
                    with server.lock:
                        server.now -= 1
                self.reply(*answer)

        return Handler
