"""A server that has adapters and answers TRL's client as vLLM does, and that can go down and come back."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class RolloutServer:
    """`adapters`: name and path of those loaded; `requests`: model and prompts of each request for completions.

    `goes_down`: whether the next such request ends it without an answer; `refuses`: the status of all of them.
    """

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.requests: list[tuple[str, list[list[int]]]] = []
        self.posted: list[str] = []
        self.goes_down = False
        self.refuses = 0
        self.takes_no_adapter = False
        self._http: ThreadingHTTPServer | None = None
        self._port = 0
        self.come_back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def come_back(self) -> None:
        """Listen again at the same address, without adapters, as after a restart."""
        self.adapters, self.goes_down = {}, False
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._http.daemon_threads = True
        self._port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def go_down(self) -> None:
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
        self._http = None

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The ids of a completion are the length of its prompt, and its number."""
        choices = []
        for prompt in body["prompt"]:
            for number in range(body["n"]):
                ids = [len(prompt), number]
                entries = [{"token": f"token_id:{t}", "logprob": -1.0, "top_logprobs": []} for t in ids]
                choices.append({"prompt_token_ids": prompt, "token_ids": ids, "logprobs": {"content": entries}})
        return {"choices": choices}


def client_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TRL's client be made where vLLM is not installed; only its NCCL part needs it."""
    monkeypatch.setattr("trl.generation.vllm_client.is_vllm_available", lambda: True)


def _handler(server: RolloutServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                cards = [{"id": "base"}, *({"id": name, "parent": "base"} for name in server.adapters)]
                return self.reply({"data": cards})
            self.reply({"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs"}}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
            endpoint = self.path.rpartition("/")[2]
            server.posted.append(endpoint)
            if endpoint == "load_lora_adapter":
                if server.takes_no_adapter:
                    return self.reply({"error": {"message": "rank 16 is greater than max_lora_rank 8."}}, 500)
                server.adapters[body["lora_name"]] = body["lora_path"]
                return self.reply({})
            if endpoint == "unload_lora_adapter":
                server.adapters.pop(body["lora_name"], None)
                return self.reply({})
            if server.goes_down:
                threading.Thread(target=server.go_down).start()
                self.close_connection = True
                return self.connection.close()
            server.requests.append((body["model"], body["prompt"]))
            if server.refuses:
                return self.reply({"error": {"message": "the prompt is too long"}}, server.refuses)
            if body["model"] not in ("base", *server.adapters):
                return self.reply({"error": {"message": f"no model {body['model']}"}}, 404)
            self.reply(server.complete(body))

        def reply(self, content: dict[str, Any], status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler
